"""Stories, dialogues, headlines and Chinese news: their prompts, references and sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.rewards.library.keywords import keywords
from burnish.tasks import dialogue, news, news_zh, story
from burnish.tasks.dialogue import Dialogue
from burnish.tasks.news import Article, Headlines, News
from burnish.tasks.news_zh import ChineseNews, read_paragraphs
from burnish.tasks.story import Story
from burnish.types import Completion, Prompt


def both(task: Any) -> list[Prompt]:
    train, held_out = list(task.train()), list(task.evaluation())
    assert train and held_out and not {p.id for p in train} & {p.id for p in held_out}
    return [*train, *held_out]


ANIMALS = ["wolf", "raven", "tiger", "horse", "mouse", "eagle", "camel", "sheep", "snake", "zebra"]


def fable(text: str, moral: str, ideal: str = "The final answer is: B") -> str:
    question = (
        f"{text}\nWhich moral is this story attempting to convey? Please respond.\n"
        f'A) Never. B) {moral} C) Always.\nThe output should look like "My reasoning: A) x"'
    )
    roles = [{"role": "system", "content": "s"}, {"role": "user", "content": question}]
    return json.dumps({"input": roles, "ideal": [ideal]}, ensure_ascii=False)


@pytest.fixture
def fables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    english = [
        fable(
            f"The {one} met  a clever {two} near water; they talked about apples and parted as friends.",
            f"Trust no {two}.",
        )
        for one in ANIMALS
        for two in ANIMALS
        if one != two
    ]
    chinese = [fable(f"从前有{n}只狐狸在山里走，遇见了第{n}个猎人。", f"小心{n}。") for n in range(10, 90)]
    paths = {}
    for language, rows in (
        ("en", [*english, english[0], fable("Short.", "x"), fable("x " * 40, "y", "none")]),
        ("zh", chinese),
    ):
        paths[f"a/fables-{language}.jsonl"] = tmp_path / f"{language}.jsonl"
        paths[f"a/fables-{language}.jsonl"].write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.setattr(story, "fetch", lambda name, **_: paths)


@pytest.mark.usefixtures("fables")
class TestStories:
    def test_an_opening_is_continued(self) -> None:
        prompts = both(Story(prompt_words=6, reference_words=8))
        first = next(p for p in prompts if p.text.startswith("The wolf met a clever raven"))
        assert first.text == "The wolf met a clever raven" and first.messages == ()
        assert first.reference == "near water; they talked about apples and parted"
        assert len(prompts) == 91  # each fable once, and the forty of x; "Short." is too short

    def test_words_are_in_the_story_and_the_reward_reads_them(self) -> None:
        for prompt in both(Story(given="words", words=6, chat=True))[:20]:
            chosen = prompt.metadata["keywords"]
            assert len(set(chosen)) == 6 and prompt.text.endswith(f"with these words: {', '.join(chosen)}.")
            completion = Completion(prompt, (1,), (2,), prompt.reference or "", (0.0,), "stop")
            assert keywords(completion) == 1.0 and prompt.messages[-1].content == prompt.text
        assert both(Story(given="words", words=6)) == both(Story(given="words", words=6))

    def test_a_moral_is_the_correct_choice(self) -> None:
        prompts = both(Story(given="moral"))
        assert {"Moral: Trust no raven.\nStory:"} <= {prompt.text for prompt in prompts}
        assert not any("x x x" in (prompt.reference or "") for prompt in prompts)  # without a letter there is no moral

    def test_chinese_is_counted_in_characters(self) -> None:
        task = Story(language="zh", prompt_words=8, reference_words=10)
        prompt = next(p for p in both(task) if p.text == "从前有10只狐狸")
        assert prompt.reference == "在山里走，遇见了第1"
        assert len(task.texts()) == len(task.train()) and all("猎人。" in text for text in task.texts())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"given": "opennig"}, "did you mean 'opening'"),
            ({"language": "fr"}, "write one of en, zh"),
            ({"language": "zh", "given": "words"}, "no spaces between them"),
            ({"prompt_words": 0}, "prompt_words = 0: must be at least 1"),
            ({"reference_words": 7}, "must be at least 8"),
        ],
    )
    def test_bad_options_are_one_line(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Story(**options)


@pytest.fixture
def talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greetings = "".join(f"- - Hello number {n}?\n  - Yes\n  - No, the second answer\n" for n in range(40))
    long = "".join(f"- - Morning {n}\n  - Good {n}\n  - Fine {n}\n  - Bye {n}\n  - Left over\n" for n in range(40))
    files = {
        "d/english/greetings.yml": greetings,
        "d/english/conversations.yml": long,
        "d/chinese/ai.yml": "- - 你好\n  - 好\n",
    }
    paths = {}
    for number, (name, rows) in enumerate(files.items()):
        paths[name] = tmp_path / str(number) / Path(name).name
        paths[name].parent.mkdir()
        paths[name].write_text(f"categories:\n- x\nconversations:\n{rows}", encoding="utf-8")
    monkeypatch.setattr(dialogue, "fetch", lambda name, **_: paths)


@pytest.mark.usefixtures("talks")
class TestDialogues:
    def test_each_reply_has_its_history(self) -> None:
        prompts = both(Dialogue(system="Be kind."))
        assert len(prompts) == 40 + 80  # the second answer to a greeting is not a turn
        hello = next(p for p in prompts if p.text == "Hello number 7?")
        assert hello.reference == "Yes"  # not True
        assert [m.role for m in hello.messages] == ["system", "user"]
        bye = next(p for p in prompts if p.reference == "Bye 7")
        assert bye.text == "A: Morning 7\nB: Good 7\nA: Fine 7" and bye.metadata["turns"] == 3
        assert [m.role for m in bye.messages] == ["system", "user", "assistant", "user"]

    def test_a_conversation_is_on_one_side(self) -> None:
        task = Dialogue(topics=["conversations"])
        numbers = [{(p.reference or "").split()[1] for p in side} for side in (task.train(), task.evaluation())]
        assert numbers[0] and numbers[1] and not numbers[0] & numbers[1]

    def test_history_is_cut_and_chat_is_optional(self) -> None:
        bye = next(p for p in both(Dialogue(history=0, chat=False)) if p.reference == "Bye 7")
        assert bye.text == "A: Fine 7\nB:" and bye.messages == ()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"language": "fr"}, "write en or zh"),
            ({"history": 3}, "must be an even number"),
            ({"system": "x", "chat": False}, "needs chat = true"),
            ({"topics": ["greeting"]}, "did you mean 'greetings'"),
        ],
    )
    def test_bad_options_are_one_line(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Dialogue(**options).train()


def test_headlines_are_on_the_sides_of_the_news(monkeypatch: pytest.MonkeyPatch) -> None:
    body = " ".join(f"word{n}" for n in range(60))
    texts = [f'The minister of {n} said "no." He spoke for U.S. troops, {n}. {body}' for n in range(60)]
    monkeypatch.setattr(
        news, "articles",
        lambda **_: ([Article(t, f"{n:064d}", f"{(n // 2) * 7919:08x}") for n, t in enumerate([*texts, "No sentence"])], 0),
    )  # fmt: skip
    task = Headlines(body_words=20)
    prompts = both(task)
    assert len(prompts) == 60
    first = next(p for p in prompts if "of 0 said" in (p.reference or ""))
    assert first.reference == 'The minister of 0 said "no."'
    assert first.text.endswith("\n\nHe spoke for U.S. troops, 0. " + " ".join(f"word{n}" for n in range(14)))
    assert "minister" not in first.text
    numbers = [{int((p.reference or "").split()[3]) // 2 for p in side} for side in (task.train(), task.evaluation())]
    assert not numbers[0] & numbers[1]  # versions of one report share a side
    assert Headlines(body_words=20, chat=False, question="{article}").train()[0].text.endswith("\nHeadline:")
    for options, message in (({"body_words": 3}, "at least 20"), ({"question": "x"}, "must contain {article} once")):
        with pytest.raises(InputError, match=message):
            Headlines(**options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_headlines_of_real_articles_are_on_the_sides_of_the_articles() -> None:
    news, task = News(), Headlines()
    sides = [{prompt.id.rpartition("/")[2] for prompt in side} for side in (news.train(), news.evaluation())]
    made = [{prompt.id.rpartition("/")[2] for prompt in side} for side in (task.train(), task.evaluation())]
    assert len(made[0] & sides[0]) > 200 and len(made[1] & sides[1]) > 60
    assert not made[0] & sides[1] and not made[1] & sides[0]


def test_chinese_news_is_read_without_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "199801.txt"
    lines = [
        f"19980101-01-{n:03d}/m  第{n}/m  [中国/ns  政府/n]nt  １/２/m  次/q  说/v  ：/w  “/w  好/a  ”/w"
        for n in range(60)
    ]
    path.write_text("\n".join(["", "  ", "短/a", *lines, lines[0]]), encoding="utf-8")
    texts = read_paragraphs(path)
    assert texts[0] == "短" and texts[1].startswith("第0中国政府") and "/v" not in texts[1] and "[" not in texts[1]
    monkeypatch.setattr(news_zh, "_file", lambda: path)
    task = ChineseNews(prompt_characters=4, reference_characters=8)
    prompts = both(task)
    assert len(prompts) == 60 and {p.text for p in prompts} == {f"第{n}中国政府"[:4] for n in range(60)}
    assert all(len(p.reference or "") == 8 for p in prompts)
    assert len(ChineseNews(prompt_characters=4, paragraphs=20).train()) < 20
    with pytest.raises(InputError, match="paragraphs = 9"):
        ChineseNews(paragraphs=9)
