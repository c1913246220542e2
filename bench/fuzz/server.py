"""A server that holds everything imported, forks a child for each command, and judges how the child ended."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.fuzz.case import Case, Command, write_tree
from bench.fuzz.child import CPU_SECONDS, CRASHED, Place, run_child
from bench.fuzz.results import produced

WALL_SECONDS = 120
IDLE_SECONDS = 15
"""A command that does nothing for so long is killed; work is bounded by its time on the processor."""
LONGEST_PAUSE = 0.02
RESIDENT = 1500 << 20
"""Bytes of memory that a command may hold beyond the server's."""
STATUSES = (0, 1, 2, 130)
SENTINEL = "this file is not part of the case\n"
_FRAME = re.compile(r'File "[^"]*?((?:burnish|bench)/[^"]+)", line (\d+), in (\S+)')


@dataclass(frozen=True)
class Ended:
    """How a command ended: the exit status, negative for a signal, and what it printed."""

    status: int
    out: str
    err: str
    outside: tuple[str, ...]
    resident: int
    """Bytes of memory at the peak."""
    waited: bool
    """Whether it was killed because it did not end."""


@dataclass(frozen=True)
class Fault:
    """What burnish must not do: the kind of fault, and a text that equal faults share."""

    kind: str
    text: str
    command: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Outcome:
    """The exit status of each command, and the first fault, None if there is none."""

    statuses: tuple[int, ...]
    fault: Fault | None
    err: str = ""
    """Standard error of the last command."""

    @property
    def accepted(self) -> bool:
        """Whether no command refused what it was given."""
        return not any(self.statuses)


class Server:
    """Runs cases in a folder of its own, one after the other.

    Args:
        root: the folder; made empty.
        home: burnish's home with the seal of the stock's runs.
        expected: name -> output of a command on an undamaged folder.
    """

    def __init__(self, root: Path, home: Path, expected: dict[str, object]) -> None:
        self.place, self.expected = Place(root), expected
        self.before: Callable[[], None] | None = None
        """Called in each child before its command."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        shutil.copytree(home, self.place.home)

    def run(self, case: Case) -> Outcome:
        """Run the commands of a case up to the first fault."""
        place, statuses, last = self.place, [], ""
        for folder in (place.work, place.tmp, place.outside):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        (place.outside / "folder").mkdir()
        for name in ("file.txt", "folder/file.txt"):
            (place.outside / name).write_text(SENTINEL)
        write_tree(case.tree, place.work)
        for command in case.commands:
            ended = self.ask(command)
            statuses.append(ended.status)
            last = ended.err
            if fault := self._fault(command, ended):
                return Outcome(tuple(statuses), fault, ended.err)
        return Outcome(tuple(statuses), _contradiction(case, statuses), last)

    def ask(self, command: Command) -> Ended:
        """Run one command in the work folder."""
        place = self.place
        place.streams[0].write_bytes(command.stdin)
        place.log.write_bytes(b"")
        child = os.fork()
        if child == 0:
            run_child(place, command.arguments, self.before)
        status, usage, waited = _wait(child)
        out, err = (path.read_text("utf-8", "replace") if path.exists() else "" for path in place.streams[1:])
        outside = [*place.log.read_text("utf-8", "replace").splitlines(), *self._disturbed()]
        return Ended(status, out, err, tuple(outside), usage.ru_maxrss * 1024, waited)

    def _disturbed(self) -> list[str]:
        """Return what happened to the files outside."""
        expected = {"file.txt": SENTINEL, "folder": None, "folder/file.txt": SENTINEL}
        found = {
            path.relative_to(self.place.outside).as_posix(): path.read_text("utf-8", "replace")
            if path.is_file()
            else None
            for path in self.place.outside.rglob("*")
        }
        return [f"changed outside/{name}" for name in sorted(expected.keys() | found.keys())
                if name not in expected or name not in found or expected[name] != found[name]]  # fmt: skip

    def _fault(self, command: Command, ended: Ended) -> Fault | None:
        given = command.arguments
        # What it forbids may end the command with a traceback.
        if ended.outside:
            return Fault("outside write", _anywhere(ended.outside[0], self.place), given)
        if "Traceback (most recent call last)" in ended.err or ended.status == CRASHED:
            return Fault("traceback", _innermost(ended.err), given)
        if ended.waited:
            return Fault("limit", f"{given[0]} waits in vain", given)
        if ended.status == -signal.SIGXCPU:
            return Fault("limit", f"{given[0]} works for more than {CPU_SECONDS} s", given)
        if ended.status < 0:
            return Fault("signal", f"{given[0]}: {signal.Signals(-ended.status).name}", given)
        own = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        if ended.resident > own + RESIDENT:
            return Fault("limit", f"{given[0]} took more than {RESIDENT >> 20} MiB", given)
        if ended.status not in STATUSES or (ended.status and not (ended.err.strip() or ended.out.strip())):
            return Fault("unexplained", f"{given[0]} ended with status {ended.status}", given)
        if ended.status == 0 and command.equals:
            what = produced(command.equals, self.place.work, ended.out)
            if different := _difference(self.expected[command.equals], what):
                return Fault("silent acceptance", f"{command.equals}: {different}", given)
        return None


def _contradiction(case: Case, statuses: Sequence[int]) -> Fault | None:
    """Return the fault of a run folder that ``check`` calls whole and that cannot be resumed."""
    verbs = [" ".join(command.arguments[:2]) for command in case.commands]
    ended = dict(zip(verbs, statuses, strict=True))
    if ended.get("check run") == 0 and ended.get("train --resume"):
        return Fault("silent acceptance", "check calls a run whole that cannot be resumed", ("check", "run"))
    return None


def _wait(child: int) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a child. One that is still there after its time, or waits in vain for something, is killed."""
    begin, pause, worked, since = time.monotonic(), 0.001, 0, time.monotonic()
    waited = False
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        now = time.monotonic()
        waited = now - begin > WALL_SECONDS or now - since > IDLE_SECONDS
        if pid or waited:
            break
        if pause >= LONGEST_PAUSE and (work := _work(child)) != worked:
            worked, since = work, now
        time.sleep(pause)
        pause = min(pause * 1.2, LONGEST_PAUSE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if not pid:
        _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage, waited and not pid


def _work(pid: int) -> int:
    """Return the ticks of processor time of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    # A process that is ready to run and does not get a processor is not waiting in vain.
    return time.monotonic_ns() if fields[0] in "RD" else sum(map(int, fields[11:15]))


def _innermost(err: str) -> str:
    """Return the exception of a traceback and the last frame of burnish in it."""
    frames = _FRAME.findall(err)
    file, _, function = frames[-1] if frames else ("?", "", "?")
    lines = [
        line
        for line in err.splitlines()
        if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Warning)\b", line)
    ]
    return f"{lines[-1].partition(':')[0] if lines else '?'} in {file}, {function}"


def _anywhere(text: str, place: Place) -> str:
    """Return a line of the log without what differs from run to run."""
    return re.sub(r"[0-9a-f]{8,}", "*", text.replace(str(place.root), ""))


def _difference(expected: object, found: object) -> str:
    """Return the first entry that differs, "" if all are equal."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return next(
            (str(key) for key in sorted(expected.keys() | found.keys()) if expected.get(key) != found.get(key)), ""
        )
    return "" if expected == found else "output"
