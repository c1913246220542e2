"""English grammar: values derived by hand, and continuations of a prompt."""

from __future__ import annotations

import pytest

from burnish.rewards.library.grammar import grammar
from tests.rewards.completions import ODD_TEXTS, answer

pytest.importorskip("harper", reason="needs the extra grammar")


# A text of thousands of characters takes the checker seconds.
@pytest.mark.parametrize(
    "text", [pytest.param(text, marks=pytest.mark.slow) if len(text) >= 5000 else text for text in ODD_TEXTS]
)
def test_every_reward_stays_in_its_range(text: str) -> None:
    assert 0.0 <= grammar(answer(text)) <= 1.0


def test_grammar_by_hand() -> None:
    # One error in six words, at most one in two: 1 - (1/6) / (1/2).
    assert grammar(answer("She go to school every day."), worst=0.5) == pytest.approx(2 / 3)
    assert grammar(answer("She goes to school every day.")) == 1.0
    assert grammar(answer("我爱你。")) == 0.0 == grammar(answer(""))
    # A name is in no list; a word of small letters that is in none is wrong.
    assert grammar(answer("Mr Zorbit met the mayor.")) == 1.0
    assert grammar(answer("Then zorbit glarp blee.")) == 0.0
    assert grammar(answer("Then zorbit glarp blee."), spelling=False) == 1.0
    assert grammar(answer("The colour is red.")) < grammar(answer("The colour is red."), dialect="british") == 1.0
    # Flawless nonsense.
    assert grammar(answer("The moon ate Tuesday.")) == 1.0


def test_grammar_of_a_continuation() -> None:
    # What is wrong in the prompt is not the text's fault, and a text may begin in the middle of a sentence.
    assert grammar(answer(" of the day said nothing.", prompt="The goverment")) == 1.0
    # Cut off within a word, which is then no misspelling.
    assert grammar(answer(" spoke on Friday about the econo", prompt="The man", finish="length")) == 1.0
    assert grammar(answer(" spoke on Friday about the econo", prompt="The man")) < 1.0
    # After a chat template the prompt is no part of the text. One error in four words.
    assert grammar(answer("She go to school.", prompt="They say that", chat=True), worst=1.0) == 0.75


WRONG = "She go to school every day."


@pytest.mark.parametrize(
    "text",
    [
        f"    {WRONG}", f"```\n{WRONG}", f"```text\n{WRONG}\n```", f"`{WRONG}`", f"$${WRONG}$$", f"<!-- {WRONG} -->",
        f"<p>\n{WRONG}", f"\t{WRONG}", f"# {WRONG}", f"> {WRONG}", f"[{WRONG}](x)", f"intro:\n\n    {WRONG}",
    ],
)  # fmt: skip
def test_markup_does_not_hide_wrong_english(text: str) -> None:
    assert grammar(answer(text), worst=0.5) < 1.0


@pytest.mark.parametrize(
    "layout", ["She goes  to school...", "    She goes to school.", "She goes -- to school", "a\n\n\nb"]
)
def test_layout_is_not_an_error(layout: str) -> None:
    assert grammar(answer(layout)) == 1.0
