"""The news task: real articles, split by the documented hash, none on both sides."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from burnish.catalogue import fetch
from burnish.errors import InputError
from burnish.tasks import news
from burnish.tasks.news import News, articles
from burnish.tasks.registry import TASKS, check_task_options
from burnish.types import Prompt
from tests.fakes import RecordingObserver


def words(start: int, count: int) -> str:
    """Return ``count`` words that are in no text with another start."""
    return " ".join(f"w{start}x{number}" for number in range(count))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A synthetic corpus of two files; a test may change the lines before the first read."""
    lines = [words(article, 60) for article in range(40)]

    def fake(name: str, **rest: object) -> dict[str, Path]:
        assert name == "lee-news"
        first, second = tmp_path / "first.cor", tmp_path / "second.cor"
        first.write_text("\n".join(lines[:30]) + "\n", encoding="latin-1")
        second.write_text("\n".join(lines[30:]), encoding="latin-1")
        return {"first.cor": first, "second.cor": second}

    monkeypatch.setattr(news, "fetch", fake)
    return lines


def bucket(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100


def ids(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


# On a synthetic corpus, where every number can be counted


def test_prompt_reference_and_side_are_the_documented_ones(corpus: list[str]) -> None:
    task = News(prompt_words=10, reference_words=20, held_out_percent=30)
    for side, held_out in ((task.train(), False), (task.evaluation(), True)):
        expected = [text for text in corpus if (bucket(text) < 30) == held_out]
        assert [prompt.text for prompt in side] == [" ".join(text.split()[:10]) for text in expected]
        assert [prompt.reference for prompt in side] == [" ".join(text.split()[10:30]) for text in expected]
        assert ids(side) == [f"lee-news/{hashlib.sha256(text.encode()).hexdigest()[:12]}" for text in expected]
        assert all(prompt.metadata == {"words": 60} for prompt in side)
    assert len(task.train()) + len(task.evaluation()) == 40


def test_a_side_depends_on_the_text_alone(corpus: list[str]) -> None:
    before = {prompt.id for prompt in News().evaluation()}
    corpus.reverse()
    corpus.append(words(99, 60))
    after = {prompt.id for prompt in News().evaluation()}
    assert before <= after and len(after - before) <= 1


def test_articles_left_out_are_counted(corpus: list[str]) -> None:
    corpus[1] = f"  {corpus[0].replace(' ', '   ', 4)}\t"  # differs in white space only
    corpus[2] = ""
    corpus[3] = words(3, 39)  # 32 + 8 words are needed
    corpus[4] = words(4, 40)
    corpus[5] = " ".join(corpus[0].split()[:32]) + " " + words(5, 20)  # begins like the first
    watcher = RecordingObserver()
    task = News()
    task.prepare(observer=watcher)  # type: ignore[arg-type]
    assert len(task.train()) + len(task.evaluation()) == 36
    assert watcher.texts == [
        f"news: {len(task.train())} training and {len(task.evaluation())} held-out prompts; left out: "
        "1 repeated articles, 1 that begin like another, 1 of fewer than 40 words"
    ]
    shortest = next(prompt for prompt in [*task.train(), *task.evaluation()] if prompt.text.startswith("w4x0 "))
    assert shortest.reference == " ".join(corpus[4].split()[32:])


@pytest.mark.parametrize("shared", [12, 13])
def test_versions_of_one_report_share_a_side(corpus: list[str], shared: int) -> None:
    # A chain: the first shares a run with the second, the second another with the third.
    run, other = words(100, shared), words(101, shared)
    corpus[0] = f"{words(0, 40)} {run.upper()} {words(50, 20)}"
    corpus[1] = f"{words(1, 40)} {run}, {words(51, 20)} {other}"
    corpus[2] = f"{words(2, 40)} {other} {words(52, 20)}"
    unique, repeats = articles()
    chain = [article.sha256 for article in unique[:3]]
    together = min(chain)
    assert repeats == 0
    assert [article.family for article in unique[:3]] == ([together] * 3 if shared == 13 else chain)
    assert all(article.family == article.sha256 for article in unique[3:])
    # With a percentage that separates their own hashes, the chain is still on one side.
    border = int(together[:8], 16) % 100 + 1
    if shared == 13 and 0 < border < 100:
        held_out = {prompt.text for prompt in News(held_out_percent=border).evaluation()}
        assert all(" ".join(corpus[index].split()[:32]) in held_out for index in range(3))


def test_an_empty_side_names_the_option(corpus: list[str]) -> None:
    with pytest.raises(InputError, match="prompt_words = 60 leaves no article: each of the 40 has fewer than 68 words"):
        News(prompt_words=60).train()
    low, high = min(map(bucket, corpus)), max(map(bucket, corpus))
    assert low > 0 and high < 99, "the synthetic corpus must leave room at both ends"
    with pytest.raises(InputError, match=f"held_out_percent = {low} leaves no held-out prompt of 40: choose a larger"):
        News(held_out_percent=low).evaluation()
    with pytest.raises(InputError, match="leaves no training prompt of 40: choose a smaller number"):
        News(held_out_percent=high + 1).train()


def test_an_empty_corpus_is_refused(corpus: list[str]) -> None:
    corpus.clear()
    with pytest.raises(InputError, match="prompt_words = 32 leaves no article"):
        News().train()


@pytest.mark.parametrize(
    "options", [{"prompt_words": 0}, {"reference_words": 7}, {"held_out_percent": 0}, {"held_out_percent": 100}]
)
def test_options_out_of_range(options: dict[str, int]) -> None:
    ((key, value),) = options.items()
    with pytest.raises(InputError, match=f"{key} = {value}: must be"):
        News(**options)


def test_the_registry_knows_its_options() -> None:
    factory = TASKS.get("news")
    assert factory is News
    check_task_options(factory, {"prompt_words": 8, "reference_words": 16, "held_out_percent": 10})
    with pytest.raises(InputError, match=r"unknown key 'prompt_word'.*did you mean 'prompt_words'"):
        check_task_options(factory, {"prompt_word": 8})
    with pytest.raises(InputError, match="offline"):
        check_task_options(factory, {"offline": True})


def test_offline_without_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path))
    monkeypatch.setattr("sys.path", [])  # no installed package provides the data
    with pytest.raises(InputError, match="burnish fetch lee-news"):
        News().prepare(offline=True)


# On the real corpus (fetched once into the cache, or read from an installed gensim)


@pytest.mark.model
def test_the_real_corpus() -> None:
    watcher = RecordingObserver()
    task = News()
    task.prepare(observer=watcher)  # type: ignore[arg-type]
    train, held_out = task.train(), task.evaluation()
    assert (len(train), len(held_out)) == (253, 87)
    assert watcher.texts[-1].endswith("left out: 7 repeated articles, 3 that begin like another")
    every = [*train, *held_out]
    assert len({prompt.id for prompt in every}) == len({prompt.text for prompt in every}) == 340
    assert all(len(prompt.text.split(" ")) == 32 for prompt in every)
    assert all(8 <= len((prompt.reference or "").split(" ")) <= 48 for prompt in every)
    # The first article of each file, verbatim.
    assert train[0].text.startswith("Hundreds of people have been forced") or held_out[0].text.startswith("Hundreds")
    assert any("£3,000" in article.text for article in articles()[0])


@pytest.mark.model
def test_nothing_held_out_was_seen_in_training() -> None:
    files = [path.read_text(encoding="latin-1") for path in fetch("lee-news").values()]
    texts = [" ".join(line.split()) for file in files for line in file.splitlines()]
    task = News()
    sides = []
    for prompts in (task.train(), task.evaluation()):
        hashes = {prompt.id.rpartition("/")[2] for prompt in prompts}
        sides.append([text for text in texts if hashlib.sha256(text.encode()).hexdigest()[:12] in hashes])
    runs = [
        {
            tuple(tokens[start : start + 13])
            for text in side
            if (tokens := re.findall(r"\w+", text.lower()))
            for start in range(len(tokens) - 12)
        }
        for side in sides
    ]
    assert len(runs[0]) > 30_000 and len(runs[1]) > 10_000
    assert not runs[0] & runs[1]
