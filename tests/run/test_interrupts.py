"""Ctrl-C is raised at once, except between hold and release."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from burnish.run.interrupts import Interrupts


@pytest.fixture(autouse=True)
def default_sigint_handler():
    """Restore the default handler, because pytest-xdist's workers ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_is_raised_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), Interrupts():
        press()
        reached.append("past the signal")
    assert reached == []


def test_ctrl_c_is_delayed_until_release():
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupts.hold()
        press()
        press()
        done.append("written")
        interrupts.release()
        done.append("past the release")
    assert done == ["written"]


def test_a_delayed_ctrl_c_is_raised_once():
    with Interrupts() as interrupts:
        interrupts.hold()
        press()
        with pytest.raises(KeyboardInterrupt):
            interrupts.release()
        interrupts.hold()
        interrupts.release()


def test_the_handler_is_restored_even_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Interrupts() as interrupts:
        interrupts.hold()
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_do_nothing():
    failures: list[BaseException] = []

    def work():
        try:
            with Interrupts() as interrupts:
                interrupts.hold()
                interrupts.release()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
