"""A server that is killed (SIGKILL) while answers arrive loses none that it acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from burnish.safety.review.database import open_database
from burnish.safety.review.store import ReviewStore
from tests.safety.review.conftest import pair

KILLS = 20
# One process listens and imports, and forks a server for each line that it reads.
SERVER = """
import os, socket, sys
from pathlib import Path
import uvicorn
from burnish.safety.review.app import make_app
from burnish.safety.review.database import open_database
from burnish.safety.review.store import ReviewStore

listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        app = make_app(ReviewStore(open_database(Path(sys.argv[1]))))
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the server")]


class Robot(threading.Thread):
    """A reviewer that judges until it is stopped, and keeps what the server acknowledged."""

    def __init__(self, address: str, token: str) -> None:
        super().__init__()
        self.address, self.headers = address, {"Authorization": f"Bearer {token}"}
        self.acknowledged: list[int] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                with httpx.Client(base_url=self.address, headers=self.headers, timeout=60) as client:
                    while not self.stopped.is_set():
                        item = client.get("/api/next").json()
                        answer = client.post("/api/judge", json={"item": item["id"], "choice": "tie"})
                        assert answer.status_code == 200, answer.text
                        self.acknowledged.append(item["id"])
            except httpx.TransportError:
                time.sleep(0.01)


def test_a_killed_server_loses_no_acknowledged_answer(tmp_path):
    path = tmp_path / "review.sqlite"
    store = ReviewStore(open_database(path))
    store.add_items(pair(number) for number in range(2000))
    tokens = [store.add_reviewer(name) for name in ("ann", "bob")]
    store.engine.dispose()
    rng = random.Random(0)
    command = [sys.executable, "-c", SERVER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        port = int(process.stdout.readline())
        robots = [Robot(f"http://127.0.0.1:{port}", token) for token in tokens]
        for robot in robots:
            robot.start()
        for kill in range(KILLS):
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            before = sum(len(robot.acknowledged) for robot in robots)
            while sum(len(robot.acknowledged) for robot in robots) < before + 4:
                if not all(robot.is_alive() for robot in robots):
                    os.kill(child, signal.SIGKILL)
                    pytest.fail("a reviewer's program ended")
                time.sleep(0.002)
            time.sleep(rng.random() * 0.05)
            if kill == KILLS - 1:
                for robot in robots:
                    robot.stopped.set()
            os.kill(child, signal.SIGKILL)
        process.stdin.close()
        for robot in robots:
            robot.join()
    judged = [one.item.id for one in store.judgements()]
    store.engine.dispose()
    acknowledged = [item for robot in robots for item in robot.acknowledged]
    assert len(acknowledged) >= 4 * KILLS
    assert set(acknowledged) <= set(judged)
    assert len(judged) == len(set(judged))
    # What was recorded, and not acknowledged, is at most one answer per robot and kill.
    assert len(judged) - len(acknowledged) <= 2 * KILLS
