"""A PostgreSQL server of Debian's package, on a socket in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
USER = "postgres"


def server_is_installed() -> bool:
    return bool(SERVERS)


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server and yield the URL of its database. As root it runs as the package's user, since it refuses root."""
    folder = Path(tempfile.mkdtemp(prefix="burnish-postgres-"))
    user = USER if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    data, programs = folder / "data", SERVERS[-1].parent

    def run(*command: str) -> None:
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={"PATH": os.defpath})

    control = [str(programs / "pg_ctl"), "-D", str(data), "-w", "-t", "300"]
    try:
        run(str(programs / "initdb"), "-D", str(data), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C")
        run(*control, "-l", str(folder / "log"), "-o", f"-c listen_addresses='' -k {folder}", "start")
        try:
            yield f"postgresql://{USER}@/postgres?host={folder}"
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
