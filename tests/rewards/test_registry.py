"""The contract of a reward, from its signature and its decorator, and the registry of rewards."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.registry import Registry
from burnish.rewards.forms import Context
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS, RewardFacts, RewardFunction, reward, reward_function
from burnish.types import Completion, Prompt


def answer(text: str, reference: str | None = None) -> Completion:
    return Completion(Prompt("p", "question", reference=reference), (0,), (1,), text, (0.0,), "stop")


def values(function: RewardFunction, completions: list[Completion], policy: Any = None, **options: Any) -> list[float]:
    return Part("part", function, options=options).values(completions, Context(policy))[0].tolist()


@pytest.fixture
def temporary_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the registrations of a test after it."""
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))


def test_arguments_are_filled_by_name_not_by_position() -> None:
    def mixed(text, completion, reference, prompt):
        return len(text) + 10 * (completion.text == text) + 100 * (reference == "r") + 1000 * (prompt.id == "p")

    assert values(reward_function("mixed", mixed), [answer("abc", "r")]) == [1113]


def test_plurals_make_a_batch_reward() -> None:
    def batch(references, texts, completions, prompts):
        return [len(t) + (r == "r") for t, r, _, _ in zip(texts, references, completions, prompts, strict=True)]

    made = reward_function("batch", batch)
    assert made.batch
    assert values(made, [answer("abc", "r"), answer("a")]) == [4, 1]


@pytest.mark.parametrize("plural", [False, True])
def test_the_reference_policy_is_passed_to_rewards_that_name_it(plural: bool) -> None:
    policy = object()

    def one(text, reference_policy):
        return float(reference_policy is policy)

    def many(texts, reference_policy):
        return [float(reference_policy is policy) for _ in texts]

    made = reward_function("x", many if plural else one)
    assert made.batch == plural
    assert values(made, [answer("a")], policy) == [1.0]


def test_keyword_only_arguments_are_options() -> None:
    def scaled(text, *, factor: float = 2.0, mode: str = "length", strict: bool = False, limit: int | None = None):
        return factor * len(text)

    made = reward_function("scaled", scaled)
    assert made.options == {"factor": 2.0, "mode": "length", "strict": False, "limit": None}
    assert values(made, [answer("abc")], factor=3.0) == [9.0]
    made.check_options({"factor": 3, "mode": "words", "strict": True, "limit": 7})
    for wrong in ({"factor": "3"}, {"factor": True}, {"mode": 1}, {"strict": 1}):
        with pytest.raises(InputError, match="must be of the same type as its default"):
            made.check_options(wrong)
    with pytest.raises(InputError, match=r"no option 'facto' \(did you mean 'factor'\?\); known: use, .*factor"):
        made.check_options({"facto": 3.0})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda txt: 0, r"unknown argument 'txt' \(did you mean 'text'\?\); a reward may take completion, prompt"),
        (lambda text, factor=1: 0, r"unknown argument 'factor'.*options come after a \*"),
        (lambda text, *, factor: 0, r"unknown argument 'factor'"),
        (lambda text, texts: 0, "takes both text and texts: take one completion, or all of them"),
        (lambda reference_policy: 0, "takes neither a completion nor completions"),
        (lambda: 0, "takes neither"),
        (lambda *text: 0, r"'\*text' cannot be filled by name"),
        (lambda text, **rest: 0, r"'\*\*rest' cannot be filled by name"),
        (lambda text, /: 0, "cannot be filled by name"),
        (len, "cannot be filled by name"),
        ("bleu", "reward 'bad' is not a function: it is of type str"),
    ],
)
def test_signatures_that_cannot_be_filled(function, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reward_function("bad", function)


def test_summary_is_the_first_line() -> None:
    def documented(text):
        """The short form.

        The long form.
        """

    assert reward_function("x", documented).summary == "The short form."
    assert reward_function("x", lambda text: 0).summary == ""


def test_a_callable_object_is_a_reward() -> None:
    class Longer:
        def __init__(self, than: int) -> None:
            self.than = than

        def __call__(self, text: str) -> bool:
            return len(text) > self.than

    assert values(reward_function("longer", Longer(2)), [answer("abc"), answer("a")]) == [True, False]


def test_the_decorator_registers_and_gives_back_the_function(temporary_names: None) -> None:
    @reward
    def first_of_its_kind(text):
        return 1.0

    @reward(name="second-of-its-kind")
    def renamed_in_its_decorator(text):
        return 2.0

    assert first_of_its_kind("anything") == 1.0
    assert REWARDS.get("first_of_its_kind").function is first_of_its_kind
    assert REWARDS.get("second-of-its-kind").function is renamed_in_its_decorator
    assert {"first_of_its_kind", "second-of-its-kind"} <= set(REWARDS.names())
    assert "renamed_in_its_decorator" not in REWARDS


def test_facts_are_declared_in_the_decorator_and_travel_with_the_function(temporary_names: None) -> None:
    @reward(needs_reference=True, needs_whole="it counts to the end", english_only=lambda *, model: not model)
    def declared(text, *, model: str = ""):
        return 1.0

    for made in (REWARDS.get("declared"), reward_function("module:declared", declared)):
        assert made.facts.needs_reference and not made.facts.needs_companions
        assert made.english_only({}) and not made.english_only({"model": "x"})
        made.check_credit("completion")
        with pytest.raises(InputError, match="needs the whole completion, because it counts to the end: remove credit"):
            made.check_credit("token")
    assert reward_function("plain", lambda text: 0).facts == RewardFacts()
    with pytest.raises(InputError, match="needs_whole = True: must be the reason, as text"):
        reward(needs_whole=True)


def test_options_are_checked_and_preflight_asked_with_every_option(temporary_names: None) -> None:
    def check(**options):
        if options["low"] > options["high"]:
            raise InputError(f"low = {options['low']} above high = {options['high']}")

    @reward(check_options=check, preflight=lambda *, low, high: (f"{low} to {high}", "info"))
    def banded(text, *, low: int = 1, high: int = 2):
        return 1.0

    made = REWARDS.get("banded")
    made.check_options({"high": 7})
    with pytest.raises(InputError, match="low = 3 above high = 2"):
        made.check_options({"low": 3})
    assert made.preflight({"high": 7}) == ("1 to 7", "info")
    assert reward_function("plain", lambda text: 0).preflight({}) is None


@pytest.mark.parametrize("name", ["bleu", "mine_alone"])
def test_a_taken_name_is_refused(temporary_names: None, name: str) -> None:
    reward(name="mine_alone")(lambda text: 1.0)
    with pytest.raises(InputError, match=f"a reward named '{name}' is registered already"):
        reward(name=name)(lambda text: 1.0)


def test_built_in_rewards_are_found_by_name(temporary_names: None) -> None:
    for name in ("bleu", "exact", "perplexity", "repetition"):
        made = REWARDS.get(name)
        assert made.name == name and made.summary
        assert REWARDS.get(name) is made
    assert REWARDS.get("perplexity").options == {"form": "log", "worst": 1000.0}


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no reward named 'perplexty' \(did you mean 'perplexity'\?\); known: .*bleu"):
        REWARDS.get("perplexty")


def test_a_path_reaches_a_module_in_the_working_folder(temporary_names, tmp_path, monkeypatch) -> None:
    (tmp_path / "my_rewards.py").write_text("def short(text):\n    return -len(text)\n\nlevel = 3\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    try:
        assert values(REWARDS.get("my_rewards:short"), [answer("abc")]) == [-3]
        assert sys.path == path
        with pytest.raises(InputError, match=r"'my_rewards' has no 'shor' \(did you mean 'short'\?\)"):
            REWARDS.get("my_rewards:shor")
        with pytest.raises(InputError, match="is not a function: it is of type int"):
            REWARDS.get("my_rewards:level")
        with pytest.raises(InputError, match=r"cannot import 'missing_rewards'.*put its file into"):
            REWARDS.get("missing_rewards:short")
    finally:
        sys.modules.pop("my_rewards", None)


def test_registered_names_need_no_import() -> None:
    registry: Registry[object] = Registry("thing", {"shipped": "nowhere.at.all:x"})
    assert registry.names() == ["shipped"]
    entry = object()
    assert registry.add("own", entry) is entry
    assert registry.get("own") is entry
    assert registry.names() == ["own", "shipped"]


def test_an_option_may_not_have_the_name_of_a_recipe_key() -> None:
    with pytest.raises(InputError, match="option 'gate' is a key of every"):
        reward_function("mine", lambda text, *, gate=0.0: 1.0)
