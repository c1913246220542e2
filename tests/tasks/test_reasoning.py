"""The reasoning task: generated questions, the generator's verifier, and no reward for nonsense."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from burnish.errors import InputError
from burnish.rewards.library.answers import extract_answer, numeric, verifier
from burnish.rewards.registry import REWARDS
from burnish.system import optional_packages as extras
from burnish.tasks.generators import EASY, generate_entries, get_verifier
from burnish.tasks.reasoning import Reasoning
from burnish.tasks.registry import TASKS, check_task_options
from burnish.types import Completion, Prompt

pytestmark = [
    pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="pip install 'burnish[reasoning]'"),
    pytest.mark.xdist_group("reasoning_gym"),  # one process imports it, for two seconds
]


def completion(prompt: Prompt, text: str) -> Completion:
    return Completion(prompt, (1,), (2,), text, (0.0,), "stop")


def answer(text: str, reference: str = "7") -> Completion:
    return completion(Prompt("p", "?", reference), text)


@pytest.mark.parametrize("generator", list(EASY))
def test_every_generator_verifies_its_own_questions(generator: str) -> None:
    task = Reasoning(generator=generator, size=60, held_out_percent=30)
    train, held_out = task.train(), task.evaluation()
    assert len(train) > len(held_out) > 0
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in held_out}
    for prompt in [*train[:10], *held_out[:10]]:
        assert prompt.reference
        assert verifier(completion(prompt, f" {prompt.reference}\n"), answer="whole") == 1.0
        assert verifier(completion(prompt, f"{prompt.reference} or so"), answer="whole") == 0.0
        assert verifier(completion(prompt, ""), answer="whole") == 0.0
        assert prompt.messages[-1].content == prompt.text


def test_the_same_seed_gives_the_same_prompts_and_another_does_not() -> None:
    assert Reasoning(size=50).train() == Reasoning(size=50).train()
    assert Reasoning(size=50).train() != Reasoning(size=50, seed=1).train()


@pytest.mark.parametrize("seed", [2**31, -(2**31) - 1])
def test_a_seed_that_would_repeat_the_questions_of_another_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match="must be at least"):
        Reasoning(seed=seed)


def test_equal_shares_ask_different_questions() -> None:
    entries = generate_entries("gcd", EASY["gcd"], 40, 3)
    alone = Reasoning(generator="gcd", size=40, seed=3).examples(offline=True, observer=None)
    assert [one.prompt.metadata["entry"] for one in alone] == entries
    spelled_out = {"use": "gcd", "settings": dict(EASY["gcd"]), "weight": 3}
    twice = Reasoning(generators=[{"use": "gcd"}, spelled_out], size=40, seed=3)
    assert [one.digest for one in twice.examples(offline=True, observer=None)] == [one.digest for one in alone]
    hard = {"use": "gcd", "settings": {"max_value": 1000}}
    mixed = Reasoning(generators=[{"use": "gcd"}, hard], size=40, seed=3).examples(offline=True, observer=None)
    own = generate_entries("gcd", {**EASY["gcd"], "max_value": 1000}, 20, 3)
    assert [one.prompt.metadata["entry"] for one in mixed][1::2] == own, "other settings have a stream of their own"


def test_without_a_chat_template_the_prompt_ends_with_answer() -> None:
    prompt = Reasoning(size=20, chat=False, held_out_percent=50).train()[0]
    assert prompt.messages == () and prompt.text.endswith("\nGive the answer only.\nAnswer:")


def test_partial_scores_for_wrong_answers_are_off_by_default() -> None:
    prompt = Reasoning(generator="spell_backward", size=40).train()[0]
    nonsense = (prompt.reference or "")[:-1] + "#"
    # The generator gives part of the score for letters in the right position,
    assert verifier(completion(prompt, nonsense), answer="whole", partial=True) > 0
    assert verifier(completion(prompt, nonsense), answer="whole") == 0.0
    # and for a text that contains the sum.
    prompt = Reasoning(size=40).train()[0]
    assert 0 < verifier(completion(prompt, f"x{prompt.reference}"), answer="whole", partial=True) < 1
    assert verifier(completion(prompt, f"x{prompt.reference}"), answer="whole") == 0.0


def test_the_verifiers_are_the_documented_ones() -> None:
    from reasoning_gym.factory import ProceduralDataset

    own = {name for name in EASY if get_verifier(name).__func__ is not ProceduralDataset.score_answer}
    assert own == {"chain_sum", "products", "decimal_arithmetic", "spell_backward"}


@pytest.mark.parametrize("word", ["abcdef", "abcdefghi"])
def test_a_right_word_with_a_suffix_is_wrong(word: str) -> None:
    # In floating point 6 times 1/6 is below 1 and 9 times 1/9 above it: the verifier does not see the suffix.
    entry = {"question": "?", "answer": word, "metadata": {}}
    prompt = Prompt("p", "?", word, {"generator": "spell_backward", "entry": entry})
    assert get_verifier("spell_backward")(word + "!", entry) == pytest.approx(1.0)
    assert verifier(completion(prompt, word + "!"), answer="whole") == 0.0
    assert verifier(completion(prompt, word), answer="whole") == 1.0
    assert verifier(completion(prompt, word + "!"), answer="whole", partial=True) <= 1.0


def test_a_list_of_guesses_scores_nothing() -> None:
    prompt = Prompt(
        "p", "?", "7", {"generator": "chain_sum", "entry": {"question": "?", "answer": "7", "metadata": {}}}
    )
    assert verifier(completion(prompt, " ".join(map(str, range(20))))) == 0.0  # the last one is 19
    assert verifier(completion(prompt, "3 + 4 = 7.")) == 1.0
    assert verifier(completion(prompt, "7" * 5000)) == 0.0


@pytest.mark.parametrize(
    ("text", "reading", "expected"),
    [
        ("so 3 + 4 = 7.", "last_number", "7"),
        ("it is -7", "last_number", "-7"),
        ("it is \u22127", "last_number", "-7"),  # a typographic minus sign
        ("5\u22123", "last_number", "3"),
        ("5-3", "last_number", "3"),  # a difference, not -3
        ("(2)-3", "last_number", "3"),
        ("1,234.50!", "last_number", "1234.50"),
        ("1, 2", "last_number", "2"),
        ("٣", "last_number", "٣"),  # digits of other scripts count
        ("none", "last_number", ""),
        ("", "last_number", ""),
        ("a\n\n b \n", "last_line", "b"),
        ("\n a\nb", "first_line", "a"),
        ("", "last_line", ""),
        ("<answer>1</answer> no <answer> 2 </answer>", "tag", "2"),
        ("no tag", "tag", ""),
        ("  all of\nit ", "whole", "all of\nit"),
        ("答案是七，即7。", "last_number", "7"),
    ],
)
def test_answers_are_read(text: str, reading: str, expected: str) -> None:
    assert extract_answer(text, reading) == expected


@pytest.mark.parametrize(
    ("text", "reference", "tolerance", "expected"),
    [
        ("7", "7", 0.0, 1.0), ("7.0", "7", 0.0, 1.0), ("it is 07", "7", 0.0, 1.0), ("8", "7", 0.0, 0.0),
        ("7.7", "7", 0.1, 1.0), ("7.71", "7", 0.1, 0.0),  # 7 * 0.1 = 0.7 on either side
        ("0.05", "0", 0.1, 1.0), ("", "7", 0.0, 0.0), ("1e999999999", "7", 0.0, 0.0), ("seven", "7", 0.0, 0.0),
        ("1,000", "1000", 0.0, 1.0), ("-7", "7", 0.0, 0.0),
    ],
)  # fmt: skip
def test_numbers_by_hand(text: str, reference: str, tolerance: float, expected: float) -> None:
    assert numeric(answer(text, reference), tolerance=tolerance) == expected


def test_a_prompt_that_cannot_be_verified_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs a reference that is one number, but that of prompt .p. is .seven."):
        numeric(answer("7", "seven"))
    with pytest.raises(InputError, match="tolerance = -1"):
        numeric(answer("7"), tolerance=-1.0)
    with pytest.raises(InputError, match="prompt 'p' is of another"):
        verifier(answer("7"))
    with pytest.raises(InputError, match=r"unknown answer = 'hole' \(did you mean 'whole'"):
        verifier(completion(Reasoning(size=20).train()[0], "7"), answer="hole")


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="size = 9"):
        Reasoning(size=9)
    with pytest.raises(InputError, match=r"generator 'gcd' refuses its settings: .*max_valu"):
        Reasoning(generator="gcd", settings={"max_valu": 3}).train()
    with pytest.raises(InputError, match="refuses its settings"):
        Reasoning(generator="gcd", settings={"max_value": -3}).train()
    check_task_options(TASKS.get("reasoning"), {"generator": "gcd", "settings": {"max_value": 9}})
    REWARDS.get("verifier").check_options({"answer": "tag", "partial": True})


def test_a_missing_package_is_one_command() -> None:
    with pytest.raises(InputError, match=r"it needs a package that is not installed: pip install 'burnish\[x\]'$"):
        extras.needed("no_such_package_at_all", "x", "it")
