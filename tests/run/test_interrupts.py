"""Ctrl-C is raised at once, except between hold and release."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from burnish.run.interrupts import Interrupted, Interrupts, Terminated


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


def test_holding_delays_within_a_context_and_leaves_an_earlier_hold():
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.holding():
        press()
        done.append("within")
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupts.hold()
        with interrupts.holding():
            press()
        done.append("still held")
        interrupts.release()
    assert done == ["within", "still held"]


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


class TestSigterm:
    def test_it_is_raised_as_its_own_kind_after_the_release(self):
        done = []
        with pytest.raises(Terminated), Interrupts() as interrupts:
            interrupts.hold()
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("written")
            interrupts.release()
        assert done == ["written"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_the_exit_status_names_the_signal(self):
        assert Interrupted("stopped", Terminated()).exit_status == 143
        assert Interrupted("stopped", KeyboardInterrupt()).exit_status == Interrupted("stopped").exit_status == 130

    def test_a_forked_child_still_ends_by_it(self):
        with Interrupts():
            child = os.fork()
            if child == 0:
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                finally:
                    os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
