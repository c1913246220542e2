"""Catalogue entries: names, paths inside wheels, pip's tags; and the cache folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from burnish.catalogue import fetch, home, lookup, names
from burnish.catalogue.entries import ENTRIES, CatalogueFile
from burnish.catalogue.fetch import _tag_options
from burnish.errors import InputError


def test_shipped_entries_are_sound() -> None:
    data = [
        "adv-bench", "chatterbot", "chinese-word-lists", "do-not-answer", "fables", "hsk-sentences", "human-eval",
        "judged-answers",
    ]  # fmt: skip
    assert names() == sorted([*data, "gemma3-270m", "lee-news", "smollm2-135m"])
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
    with pytest.raises(
        InputError, match="nothing named 'x' in the catalogue: adv-bench, chatterbot, chinese-word-lists"
    ):
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
