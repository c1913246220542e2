"""Data sets of the hub, read by the package ``datasets`` from a local server that answers as the hub does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = [
    pytest.mark.slow,  # each test imports datasets in a process of its own
    pytest.mark.skipif(
        importlib.util.find_spec("datasets") is None, reason="datasets is not installed: pip install 'burnish[hub]'"
    ),
]

NAME = "some/questions"
COMMIT = "a" * 40
ROWS = [{"question": f"{number} 加 1 等于多少？", "answer": str(number + 1)} for number in range(40)]
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(),
    "data/test.jsonl": b'{"question": "another", "answer": "1"}\n{"question": null, "answer": "2"}\n',
}


class Hub(BaseHTTPRequestHandler):
    """The hub's answers about one data set: its commit, its files and their contents."""

    requests: list[str]

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(path)
        tree = f"/api/datasets/{NAME}/tree/{COMMIT}"
        if path.startswith(tree):
            self.answer(json.dumps(listing(path.removeprefix(tree).strip("/"))).encode())
        elif path in (f"/api/datasets/{NAME}", f"/api/datasets/{NAME}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(json.dumps({"_id": "1", "id": NAME, "sha": COMMIT, "tags": [], "siblings": siblings}).encode())
        elif path.startswith(f"/datasets/{NAME}/resolve/{COMMIT}/") or path.startswith(
            f"/datasets/{NAME}/resolve/main/"
        ):
            name = path.split("/resolve/")[1].partition("/")[2]
            if name in FILES:
                self.answer(FILES[name], ETag=f'"{hashlib.sha1(FILES[name]).hexdigest()}"')
            else:
                self.answer(b"Entry not found", 404, **{"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(b"Repository not found", 404, **{"X-Error-Code": "RepoNotFound"})

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def listing(folder: str) -> list[dict[str, Any]]:
    below = f"{folder}/" if folder else ""
    files = [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in FILES.items()
        if name.startswith(below)
    ]
    return files if folder else [*files, {"type": "directory", "path": "data", "size": 0, "oid": COMMIT}]


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture
def address(requests: list[str]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (Hub,), {"requests": requests}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys
from burnish.errors import InputError
from burnish.tasks.data import DataTask
for options, offline in json.loads(sys.argv[1]):
    try:
        examples = DataTask(prompt="question", reference="answer", **options).examples(offline=offline, observer=None)
        print(json.dumps([[each.prompt.text, each.prompt.reference] for each in examples]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def load(address: str, home: Path, *requests: tuple[dict[str, Any], bool]) -> list[Any]:
    """Return the data task's examples, or its error, for each pair of options and ``offline``.

    They are read in another process, since the library reads the hub's address on import.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    }
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(requests)],
        env=environment | {"HF_ENDPOINT": address, "HF_HOME": str(home), "BURNISH_HOME": str(home)}
        | {"HF_UPDATE_DOWNLOAD_COUNTS": "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "examples" not in process.stderr, "the library's progress bars are hidden"
    return [json.loads(line) for line in process.stdout.splitlines()]


EXPECTED = [[row["question"], row["answer"]] for row in ROWS]


def test_a_data_set_is_loaded_and_then_available_offline(address: str, requests: list[str], tmp_path: Path) -> None:
    first, again, newest = load(
        address, tmp_path, ({"dataset": NAME}, False), ({"dataset": NAME}, True), ({"dataset": NAME}, False)
    )
    assert first == again == newest == EXPECTED
    assert any("train.jsonl" in path for path in requests)


def test_offline_sends_no_request(address: str, requests: list[str], tmp_path: Path) -> None:
    load(address, tmp_path, ({"dataset": NAME}, False))
    requests.clear()
    newest, missing, this, another = load(
        address, tmp_path,
        ({"dataset": NAME}, True),
        ({"dataset": "some/other"}, True),
        ({"dataset": NAME, "revision": COMMIT}, True),
        ({"dataset": NAME, "revision": "b" * 40}, True),
    )  # fmt: skip
    assert newest == this == EXPECTED
    assert f"revision '{'b' * 40}' is not available; the local copy is {COMMIT}" in another
    assert "some/other" in missing and "offline, only data sets fetched before can be read" in missing
    # The library may ask who the user is, but nothing about data sets.
    assert not [path for path in requests if "datasets" in path]


def test_sides_revisions_and_broken_rows(address: str, tmp_path: Path) -> None:
    side, tolerant, revision, wrong, gone, unknown = load(
        address, tmp_path,
        ({"dataset": NAME, "side": "test"}, False),
        ({"dataset": NAME, "side": "test", "max_broken": 0.5}, False),
        ({"dataset": NAME, "revision": COMMIT}, False),
        ({"dataset": NAME, "side": "nope"}, False),
        ({"dataset": "some/gone"}, False),
        ({"dataset": NAME, "revision": "b" * 40}, False),
    )  # fmt: skip
    assert side == (
        f"1 of 2 rows of '{NAME}' cannot be used: line 2: 'question' is null; correct them, or raise max_broken (now 0.01)"
    )
    assert tolerant == [["another", "1"]] and revision == EXPECTED
    assert "nope" in wrong and "train" in wrong and "some/gone" in gone and "b" * 40 in unknown
    for message in (wrong, gone, unknown):
        assert message.endswith("; check its name, config, side and revision") and ".;" not in message


def test_slices_of_splits_keep_text_and_are_available_offline(address: str, tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"2024-01-0{index + 1}", "answer": "1e3"}) for index in range(4)]
    for name in ("train", "test"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{name}.jsonl").write_text("\n".join(lines))
    folder = {"dataset": str(tmp_path / "folder")}
    both, share, beyond, sliced, offline = load(
        address, tmp_path / "home",
        (folder | {"side": "train[:1]+test[-2:]"}, False),
        (folder | {"side": "test[50%:]"}, False),
        (folder | {"side": "nope[:1]"}, False),
        ({"dataset": NAME, "side": "train[:1]"}, False),
        ({"dataset": NAME, "side": "train[1:]"}, True),
    )  # fmt: skip
    assert both == [["2024-01-01", "1e3"], ["2024-01-03", "1e3"], ["2024-01-04", "1e3"]]
    assert share == [["2024-01-03", "1e3"], ["2024-01-04", "1e3"]]
    assert "nope" in beyond and beyond.endswith("check its name, config, side and revision")
    assert sliced == EXPECTED[:1] and offline == EXPECTED[1:]


def test_text_is_never_turned_into_numbers_or_dates(address: str, tmp_path: Path) -> None:
    for name, content in (
        ("train.csv", "question,answer\n2024-01-05,007\nnull,1e3\n"),
        ("train.jsonl", '{"question": "2024-01-05", "answer": "007"}\n{"question": "null", "answer": "1e3"}\n'),
    ):
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir()
        (folder / name).write_text(content)
        (rows,) = load(address, tmp_path / "home", ({"dataset": str(folder)}, False))
        assert rows == [["2024-01-05", "007"], ["null", "1e3"]]
