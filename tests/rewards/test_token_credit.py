"""Token credit: the beginnings of a text, and the gain of each token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from burnish.algorithms.presets import PRESETS
from burnish.errors import BurnishError, InputError
from burnish.recipe.schema import load_recipe
from burnish.recipe.sections import Schedule
from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from burnish.rewards.token_credit import beginnings, token_gains
from burnish.types import Completion, Prompt, Scores


def sample(*tokens: str, id: str = "p", end: bool = False) -> Completion:
    """Return a completion whose tokens are pieces of text, with their indices in ``TOKENS`` as ids."""
    text = "".join(tokens)
    ids = tuple(number(token) for token in tokens) + ((0,) if end else ())
    return Completion(Prompt(id, "?"), (), ids, text, (-1.0,) * len(ids), "stop" if end else "length")


TOKENS: list[str] = [""]


def number(token: str) -> int:
    if token not in TOKENS:
        TOKENS.append(token)
    return TOKENS.index(token)


def decode(ids: Sequence[int]) -> str:
    return "".join(TOKENS[token] for token in ids)


class TestBeginnings:
    def test_after_every_token_but_the_last(self):
        assert beginnings(sample("a", "b", "c"), "token", decode) == {1: "a", 2: "ab"}
        assert beginnings(sample("a"), "token", decode) == {}
        assert beginnings(sample("a", end=True), "token", decode) == {1: "a"}

    @pytest.mark.parametrize(
        ("tokens", "expected"),
        [
            (["A", " b", ".", " C", "?", " d"], {3: "A b.", 5: "A b. C?"}),
            (["我", "爱", "你", "。", "你", "呢", "？", "好"], {4: "我爱你。", 7: "我爱你。你呢？"}),
            # Marks in a row are one end, at the first of them; a new line is an end too.
            (["A", ".", ".", ".", "\n", "B", "\n", "C"], {2: "A.", 7: "A...\nB\n"}),
            # It is not known yet whether 3. continues.
            (["3", ".", "14", "!", "x"], {2: "3.", 4: "3.14!"}),
            # An end inside a token ends the sentence after that token.
            (["A", ". B", " c"], {2: "A. B"}),
            # A quotation mark after the end belongs to the next sentence.
            (['"', "A", ".", '"', " B"], {3: '"A.'}),
            (["no", " end"], {}),
            # The whole text is not a proper beginning.
            (["A", "."], {}),
        ],
    )
    def test_sentences(self, tokens, expected):
        assert beginnings(sample(*tokens), "sentence", decode) == expected

    def test_a_character_with_missing_bytes_is_not_written_yet(self):
        raw = "爱!".encode()
        completion = Completion(Prompt("p", ""), (), tuple(raw), "爱!", (-1.0,) * 4, "length")
        found = beginnings(completion, "token", lambda ids: bytes(ids).decode("utf-8", "replace"))
        assert found == {1: "", 2: "", 3: "爱"}

    def test_no_beginning_depends_on_what_comes_after_it(self):
        # Whatever follows the first six tokens, their beginnings are the same, or the gradient would be biased.
        start = ["A", ".", " ", "B", ".", "5"]
        ways = [
            beginnings(sample(*start, *rest), "sentence", decode) for rest in (["."], ["x"], ['"', "!"], [".", "\n"])
        ]
        assert all({length: text for length, text in way.items() if length <= 6} == ways[0] for way in ways)


def hearts(text: str) -> float:
    """Return the reward of these tests: 1 per 爱, minus 0.1 per character, plus 5."""
    return text.count("爱") - 0.1 * len(text) + 5.0


class TestTokenGains:
    def test_by_hand(self):
        completions = [sample("我", "爱", "。", "爱", end=True), sample("爱")]
        asked: list[list[str]] = []

        def ask(some):
            asked.append([one.text for one in some])
            return np.array([hearts(one.text) for one in some])

        values = np.array([hearts(one.text) for one in completions])
        first, second = token_gains(completions, values, "token", decode, ask)
        np.testing.assert_allclose(first, [-0.1, 0.9, -0.1, 0.9, 0.0], atol=1e-12)
        np.testing.assert_allclose(second, [0.9], atol=1e-12)
        # One call for the whole step, with each beginning once: the empty text, and four of the first completion.
        assert asked == [["", "我", "我爱", "我爱。", "我爱。爱"]]
        first, _ = token_gains(completions, values, "sentence", decode, ask)
        np.testing.assert_allclose(first, [0.0, 0.0, 0.7, 0.0, 0.9], atol=1e-12)

    def test_beginnings_of_another_prompt_are_scored_again(self):
        counted = []

        def ask(some):
            counted.append([(one.prompt.id, one.text, one.finish_reason, len(one.sampler_logprobs)) for one in some])
            return np.zeros(len(some))

        token_gains([sample("a", "b"), sample("a", "b", id="q"), sample("a", "c")], np.zeros(3), "token", decode, ask)
        assert counted == [
            [("p", "", "length", 0), ("p", "a", "length", 1), ("q", "", "length", 0), ("q", "a", "length", 1)]
        ]


def part(function: Any, credit: str = "token", **treatment: Any) -> Part:
    name = treatment.pop("name", "mine")
    return Part(name, reward_function(name, function), credit=credit, **treatment)  # type: ignore[arg-type]


class TestCombination:
    TEXTS = (sample("我", "爱", "爱", end=True), sample("爱", "。", "我"))

    def scores(self, *parts: Part, step: int | None = 1) -> Scores:
        return Combination(parts, decode=decode).score(self.TEXTS, step=step)

    def test_gains_sum_to_the_total_less_the_reward_of_empty_text(self):
        length = part(lambda text: float(len(text)), "completion", name="length", weight=0.5)
        scores = self.scores(part(hearts, weight=2.0), length)
        assert scores.token_rewards is not None
        np.testing.assert_allclose(scores.token_rewards.per_completion, [1.5, 1.5])
        np.testing.assert_allclose(scores.token_rewards.per_token[0], [-0.2, 1.8, 1.8, 0.0], atol=1e-12)
        np.testing.assert_allclose(scores.token_rewards.per_token[1], [1.8, -0.2, -0.2], atol=1e-12)
        sums = scores.token_rewards.per_completion + [row.sum() for row in scores.token_rewards.per_token]
        np.testing.assert_allclose(sums + 2.0 * hearts(""), scores.total)

    def test_a_held_out_measurement_is_not_split(self):
        assert self.scores(part(hearts), step=None).token_rewards is None
        assert self.scores(part(hearts, "completion")).token_rewards is None
        assert self.scores(part(hearts, weight=0.0), part(hearts, "completion", name="b")).token_rewards is None

    def test_beginnings_are_clipped_too(self):
        # Clipped at 5.5: 5 for empty text; 4.9, 5.8, 6.7 become 4.9, 5.5, 5.5.
        scores = self.scores(part(hearts, clip=(0.0, 5.5)))
        assert scores.token_rewards is not None
        np.testing.assert_allclose(scores.token_rewards.per_token[0], [-0.1, 0.6, 0.0, 0.0], atol=1e-12)

    def test_a_schedule_weights_the_gains(self):
        chosen = part(hearts, schedule=Schedule(start=0.0, end=4.0, steps=3))
        assert self.scores(chosen, step=1).token_rewards is None
        scores = self.scores(chosen, step=2)
        assert scores.token_rewards is not None
        np.testing.assert_allclose(scores.token_rewards.per_token[1], [1.8, -0.2, -0.2], atol=1e-12)

    def test_another_part_may_be_normalised(self):
        other = part(lambda text: float(text.startswith("爱")), "completion", name="b", normalise="batch")
        scores = self.scores(part(hearts), other)
        assert scores.token_rewards is not None
        np.testing.assert_allclose(scores.token_rewards.per_completion, [-1.0, 1.0])

    @pytest.mark.parametrize("batch", [False, True])
    @pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
    def test_a_function_may_say_itself_what_tokens_token_gains(self, kind, batch):
        own = {self.TEXTS[0].text: [0.5, 1.0, -1.0, 0.25], self.TEXTS[1].text: [0.0, 2.0, 1.0]}
        function = (lambda texts: [kind(own[text]) for text in texts]) if batch else (lambda text: kind(own[text]))
        scores = self.scores(part(function, weight=2.0))
        assert scores.token_rewards is not None
        assert [row.tolist() for row in scores.token_rewards.per_token] == [[1.0, 2.0, -2.0, 0.5], [0.0, 4.0, 2.0]]
        assert scores.parts["mine"].tolist() == [0.75, 3.0]
        assert scores.total.tolist() == [1.5, 6.0]
        # In a measurement, the value of a completion is their sum.
        assert self.scores(part(function, "completion"), step=None).total.tolist() == [0.75, 3.0]

    @pytest.mark.parametrize(
        ("function", "treatment", "message"),
        [
            (
                lambda completion: [1.0] * 3,
                {},
                r"'mine' returned \[1.0, 1.0, 1.0\] \(list\) for prompt 'p': 3 values for 4",
            ),
            (
                lambda completion: [],
                {},
                r"0 values for 4 tokens; a sequence must have one number per token of completion.token_ids",
            ),
            (lambda completion: [[1.0]] * len(completion.token_ids), {}, "a sequence must have one number per token"),
            (lambda completion: [math.nan] * len(completion.token_ids), {}, r"returned nan \(float\) for prompt 'p'"),
            (lambda completion: ["a"] * len(completion.token_ids), {}, r"returned 'a' \(str\) for prompt 'p'"),
            (lambda text: 1.0 if text[0] == "爱" else [0.0] * 4, {}, "returned a sequence for prompt 'p' but not"),
            (lambda completion: [1.0] * len(completion.token_ids), {"credit": "completion"}, 'set credit = "token"'),
            (lambda completion: [1.0] * len(completion.token_ids), {"credit": "sentence"}, 'set credit = "token"'),
            (lambda completion: [1.0] * len(completion.token_ids), {"clip": (0.0, 1.0)}, "remove clip"),
            (lambda text: 1.0 / len(text), {}, r"raised ZeroDivisionError.*or empty text, for credit = \"token\"\)"),
            (lambda text: 1.0 if text else math.nan, {}, r"must be finite; .*or empty text, for credit = \"token\"\)"),
        ],
    )
    def test_errors_are_one_line(self, function, treatment, message):
        with pytest.raises(BurnishError, match=message) as found:
            self.scores(part(function, **treatment))
        assert "\n" not in str(found.value)

    def test_credit_needs_decode(self):
        with pytest.raises(InputError, match="pass decode="):
            Combination([part(hearts)]).score(self.TEXTS, step=1)

    def test_gates_and_its_own_normalisation_are_refused(self):
        with pytest.raises(InputError, match="cannot be combined with its own normalise or with a gate"):
            Combination([part(hearts, normalise="group")])
        with pytest.raises(InputError, match="or with a gate"):
            Combination([part(hearts), part(hearts, "completion", name="b", gate=0.5)])
        with pytest.raises(InputError, match='must be one of "completion", "sentence", "token"'):
            Combination([part(hearts, "word")])


TOY = {"name": "finer", "policy": {"use": "tabular"}, "task": {"use": "toy"}, "algorithm": {"use": "rloo"}}


class TestRecipe:
    @pytest.mark.parametrize(
        ("use", "options"),
        [
            ("unit_tests", {}), ("verifier", {}), ("numeric", {}), ("judge", {"model": "m"}), ("group_diversity", {}),
        ],
    )  # fmt: skip
    def test_rewards_that_need_whole_completions_refuse_it(self, use, options):
        with pytest.raises(
            InputError, match=rf"reward\.0: credit = \"token\": '{use}' needs the whole completion"
        ) as found:
            load_recipe({**TOY, "reward": [{"use": use, "credit": "token", **options}]})
        assert "\n" not in str(found.value)

    @pytest.mark.parametrize("use", [name for name, preset in PRESETS.items() if not preset.supports_token_rewards])
    def test_algorithms_that_cannot_tell_tokens_apart_refuse_it(self, use):
        with pytest.raises(
            InputError, match=rf"reward\.0\.credit = \"sentence\": '{use}' cannot tell tokens apart"
        ) as found:
            load_recipe({**TOY, "algorithm": {"use": use}, "reward": [{"use": "chrf", "credit": "sentence"}]})
        assert "\n" not in str(found.value)

    def test_the_algorithms_that_refuse_it(self):
        assert {name for name, preset in PRESETS.items() if not preset.supports_token_rewards} == {
            "gdpo",
            "gspo",
            "online_dpo",
        }

    def test_normalisation_gates_and_metrics_refuse_it(self):
        with pytest.raises(InputError, match=r"normalise = \"group\" compares whole completions"):
            load_recipe({**TOY, "reward": [{"use": "chrf", "credit": "token", "normalise": "group"}]})
        with pytest.raises(InputError, match="the gate of 'regex' judges whole completions"):
            gate = {"use": "regex", "pattern": "a", "gate": 1.0}
            load_recipe({**TOY, "reward": [{"use": "chrf", "credit": "token"}, gate]})
        with pytest.raises(InputError, match="takes no credit"):
            metrics = {"metrics": [{"use": "chrf", "credit": "token"}]}
            load_recipe({**TOY, "reward": [{"use": "exact"}], "evaluation": metrics})
        with pytest.raises(InputError, match="credit"):
            load_recipe({**TOY, "reward": [{"use": "chrf", "credit": "word"}]})

    def test_credit_survives_writing_and_reading(self):
        recipe = load_recipe({**TOY, "reward": [{"use": "chrf", "credit": "token"}]})
        assert recipe.reward[0].credit == "token"
        assert 'credit = "token"' in recipe.resolved().toml()
