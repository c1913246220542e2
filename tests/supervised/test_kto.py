"""KTO: its loss, gradient and reference point, and what it learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import burnish
from burnish.data.rows import LabelledCompletion, PreferencePair, PromptCompletion
from burnish.data.splits import digest, is_held_out
from burnish.errors import InputError
from burnish.policies.loading import load_policy
from burnish.reports.terminal.progress import QuietProgress
from burnish.supervised.encoding import Encoder
from burnish.supervised.kto import KTO, desirable_gap, mismatched
from burnish.supervised.objective import PLAIN, Example, metric_values
from burnish.supervised.recipe import PreferRecipe, load_supervised
from burnish.supervised.sft import FineTuning
from burnish.training.batching import TokenBudget
from tests.fakes import SUBJECTS, supervised_recipe, write_lines

SMALL, LARGE = TokenBudget(1, 1), TokenBudget(10_000, 10_000)
ROWS = [
    LabelledCompletion("The minister said", " on Monday", True, digest("1")),
    LabelledCompletion("Shares", " fell after", False, digest("2")),
    LabelledCompletion("The home team", " won the match in the last minute", True, digest("3")),
]


@pytest.fixture
def policy(tiny):
    return load_policy(tiny("gpt2"), dtype="float64")


def perturb(policy: Any) -> None:
    """Move the policy away from its reference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def examples(policy: Any, objective: KTO) -> list[Example]:
    encoder = Encoder(policy, 24)
    return [example for row in ROWS for example in objective.examples(encoder, row)]


def gradients(policy: Any) -> list[torch.Tensor]:
    slopes = [parameter.grad.clone() for parameter in policy.trainable().values()]
    for parameter in policy.trainable().values():
        parameter.grad = None
    return slopes


def ratio(policy: Any, completion: Any) -> torch.Tensor:
    ratios = policy.logprobs([completion], PLAIN).logprobs - policy.reference.token_logprobs([completion])
    return ratios.double().sum()


class TestLoss:
    def test_the_first_loss_by_hand(self, policy):
        # pi = pi_ref, so all h = 0 and z0 = 0, and each loss is lambda (1 - sigmoid(0)) = lambda / 2. Two desirable answers
        # of weight 1.5 and one undesirable answer of weight 0.5 give (0.75 + 0.75 + 0.25) / 3.
        objective = KTO(0.3, 1.5, 0.5)
        drawn = examples(policy, objective)
        metrics = objective.backward(policy, drawn, LARGE)
        assert metrics["loss"] == pytest.approx(1.75 / 3, abs=1e-9)
        assert metrics["preference/reference_point"] == 0
        assert metrics["preference/accuracy"] == 0.5
        # d/dh lambda_D (1 - sigmoid(beta h)) at 0 is -lambda_D beta / 4; for undesirable answers it is lambda_U beta / 4.
        slopes = gradients(policy)
        total = torch.zeros((), dtype=torch.float64)
        for example, slope in zip(drawn, (-1.5, 0.5, -1.5), strict=True):
            total = total + slope * 0.3 / 4 / 3 * ratio(policy, example.texts[0].completion())
        total.backward()
        torch.testing.assert_close(slopes, gradients(policy), rtol=0, atol=1e-10)

    def test_later_losses_match_the_papers_equation(self, policy):
        perturb(policy)
        objective = KTO(0.3, 1.5, 0.5)
        drawn = examples(policy, objective)
        metrics = objective.backward(policy, drawn, LARGE)
        slopes = gradients(policy)
        texts = [example.texts[0] for example in drawn]
        # z0 pairs each prompt with the next answer, and the last prompt with the first answer.
        unrelated = [
            replace(texts[index].completion(), token_ids=texts[(index + 1) % 3].token_ids) for index in range(3)
        ]
        point = max(0.0, sum(float(ratio(policy, one).detach()) for one in unrelated) / 3)
        assert metrics["preference/reference_point"] == pytest.approx(point, abs=1e-9)
        total = torch.zeros((), dtype=torch.float64)
        for text, row in zip(texts, ROWS, strict=True):
            gain = 0.3 * (ratio(policy, text.completion()) - point)
            total = total + (1.5 * (1 - gain.sigmoid()) if row.desirable else 0.5 * (1 - (-gain).sigmoid())) / 3
        assert metrics["loss"] == pytest.approx(float(total.detach()), abs=1e-9)
        total.backward()
        torch.testing.assert_close(slopes, gradients(policy), rtol=0, atol=1e-9)

    def test_the_split_into_microbatches_changes_nothing(self, policy):
        perturb(policy)
        objective = KTO(0.3)
        drawn = examples(policy, objective)
        results = [(objective.backward(policy, drawn, budget), gradients(policy)) for budget in (SMALL, LARGE)]
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-10)
        torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-10)

    def test_answers_are_paired_with_a_different_prompt_if_possible(self, policy):
        encoder = Encoder(policy, 24)
        pair = PreferencePair("Shares", " fell", " sang on the way home", digest("2"))
        drawn = [e for row in (pair, ROWS[0]) for e in KTO(0.1).examples(encoder, row)]
        assert [example.desirable for example in drawn] == [True, False, True]
        texts = [example.texts[0] for example in drawn]
        completions = mismatched(texts)
        longest = max(text.size for text in texts)
        for one, answer in zip(completions, (texts[2], texts[2], texts[0]), strict=True):
            assert one.token_ids == answer.token_ids[: longest - len(one.prompt_ids)]
        assert mismatched(texts[:1]) == []
        assert mismatched(texts[:2])[0].token_ids == texts[1].token_ids


def test_held_out_metrics_by_hand(policy):
    objective = KTO(0.3)
    numbers = metric_values(objective.sums(policy, examples(policy, objective)), objective.metrics)
    assert (numbers["label_accuracy"], numbers["reward_gap"]) == (0.5, 0.0)
    # Means 6 / 2 and -4 / 1; without undesirable answers, their mean counts as 0.
    sums = torch.tensor([[6.0, 2.0, -4.0, 1.0], [6.0, 2.0, 0.0, 0.0]]).numpy()
    assert desirable_gap(sums).tolist() == [7.0, 3.0]


def recipe(model: Path, **changes: Any) -> dict[str, Any]:
    rows = [
        {"prompt": subject, "completion": " sang" if index % 2 else " fell", "label": bool(index % 2)}
        for index, subject in enumerate(SUBJECTS)
    ]
    write_lines("labelled.jsonl", rows)
    changes = {"preference": {"use": "kto", "beta": 0.3}, **changes}
    return supervised_recipe("prefer", model, "labelled.jsonl", format="labelled", **changes)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class TestRuns:
    @pytest.mark.slow
    def test_desirable_answers_gain_on_undesirable_ones(self, tiny):
        result = burnish.prefer(recipe(tiny("llama")), run_dir="run", observer=QuietProgress())
        entry = result.evaluation["reward_gap"]
        assert entry["before"] == 0 and entry["difference"] > 0 and entry["p_value"] < 0.05
        assert result.evaluation["label_accuracy"]["after"] > 0.8
        assert result.metrics[-1]["loss"] < result.metrics[0]["loss"]
        assert math.isclose(result.metrics[0]["loss"], 0.5, abs_tol=1e-5)

    def test_a_label_is_true_or_false(self, tiny):
        chosen = recipe(tiny("llama"))
        Path("labelled.jsonl").write_text('{"prompt": "a", "completion": "b", "label": "yes"}\n')
        with pytest.raises(InputError, match="'label' is yes, not true or false"):
            burnish.prefer(chosen, run_dir="run", observer=QuietProgress())

    @pytest.mark.parametrize(("label", "other"), [(True, "false"), (False, "true")])
    def test_rows_of_one_label_are_rejected_and_leave_no_folder(self, tiny, label, other):
        chosen = recipe(tiny("llama"))
        rows = [{"prompt": subject, "completion": " sang", "label": label} for subject in SUBJECTS]
        write_lines("labelled.jsonl", rows)
        kept = f"have the label {str(label).lower()}, and KTO compares both labels: add rows with the label {other}$"
        with pytest.raises(InputError, match=rf"^data: all \d+ training answers {kept}"):
            burnish.prefer(chosen, run_dir="run", observer=QuietProgress())
        assert not Path("run").exists()

    def test_held_out_rows_of_one_label_are_rejected(self, tiny):
        chosen = recipe(tiny("llama"))
        lines = [json.loads(line) for line in Path("labelled.jsonl").read_text(encoding="utf-8").splitlines()]
        percent = load_supervised(PreferRecipe, chosen).data.held_out_percent
        for line in lines:
            line["label"] = line["label"] or is_held_out(digest(line["prompt"]), percent)
        write_lines("labelled.jsonl", lines)
        with pytest.raises(InputError, match=r"held-out answers have the label true.*or raise data\.held_out_percent$"):
            burnish.prefer(chosen, run_dir="run", observer=QuietProgress())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": {"examples_per_step": 1}}, "must be at least 2"),
        ({"preference": {"use": "dpo", "desirable_weight": 2.0}}, 'desirable_weight belongs to use = "kto"'),
    ],
)
def test_invalid_recipes_are_rejected(changes, message):
    with pytest.raises(InputError, match=message):
        load_supervised(PreferRecipe, recipe(Path("x"), **changes))


def test_rows_of_another_kind_are_rejected(policy):
    encoder = Encoder(policy, 24)
    with pytest.raises(InputError, match="without a label"):
        KTO(0.1).examples(encoder, PromptCompletion("a", "b", digest("a")))
    with pytest.raises(InputError, match="pairs or labelled answers"):
        FineTuning().examples(encoder, ROWS[0])
