"""Reward models: gradient, training, calibration, and scores as a reward."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import burnish
from burnish.cli.app import app
from burnish.data.rows import PreferencePair
from burnish.data.splits import digest
from burnish.errors import InputError
from burnish.evaluation.calibration import calibration_error, error_by_chance, reliability
from burnish.policies.kernels.packing import get_backbone, packed_states, padded_states
from burnish.policies.loading import load_policy
from burnish.policies.reward_model import HEAD, RewardModel, load_reward_model
from burnish.reports.terminal.progress import QuietProgress
from burnish.rewards.registry import REWARDS
from burnish.supervised.bradley_terry import BradleyTerry
from burnish.supervised.encoding import Encoder
from burnish.supervised.objective import Example, flatten, metric_values
from burnish.training.batching import TokenBudget
from burnish.types import Completion, Message, Prompt
from tests.fakes import SUBJECTS, supervised_recipe, write_lines

SMALL, LARGE = TokenBudget(1, 1), TokenBudget(10_000, 10_000)
PAIRS = [
    PreferencePair("The minister said", " on Monday", " one thousand jobs", digest("1")),
    PreferencePair("The minister said", " that the new law", " won", digest("1"), margin=0.5),
    PreferencePair("Shares", " fell after", " sang on the way home", digest("2")),
]


def scorer(folder: Path, **options: Any) -> RewardModel:
    """Return a reward model with a non-zero head."""
    model = RewardModel(load_policy(folder, dtype="float64", **options), 64)
    with torch.no_grad():
        model.head.copy_(torch.linspace(-1, 1, len(model.head)))
    return model


def examples(model: RewardModel, objective: BradleyTerry) -> list[Example]:
    encoder = Encoder(model.backbone, 24)
    return [example for row in PAIRS for example in objective.examples(encoder, row)]


def gradients(model: RewardModel) -> dict[str, torch.Tensor]:
    slopes = {name: tensor.grad.clone() for name, tensor in model.trainable().items() if tensor.grad is not None}
    for parameter in model.trainable().values():
        parameter.grad = None
    return slopes


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "lfm2"])
def test_a_batched_score_equals_that_of_a_single_text(tiny, kind):
    model = scorer(tiny(kind))
    texts = flatten(examples(model, BradleyTerry()))[1]
    expected = []
    for text in texts:
        ids = torch.tensor([[*text.prompt_ids, *text.token_ids]])
        states = get_backbone(model.backbone.model)(input_ids=ids, use_cache=False)[0]
        expected.append(states[0, -1] @ model.head)
    # Llama-like norms compute in float32.
    torch.testing.assert_close(model.scores(texts), torch.stack(expected), rtol=1e-6, atol=1e-6)


class TestGradient:
    def test_it_matches_padded_states_and_finite_differences(self, tiny):
        model = scorer(tiny("gpt2"))
        assert model.backbone.layout is packed_states
        objective = BradleyTerry(margin=0.2, centre=0.05)
        drawn = examples(model, objective)
        numbers, slopes = [], []
        for layout, budget in ((packed_states, LARGE), (packed_states, SMALL), (padded_states, LARGE)):
            model.backbone.layout = layout
            numbers.append(objective.backward(model, drawn, budget)["loss"])
            slopes.append(gradients(model))
        for other, gradient in zip(numbers[1:], slopes[1:], strict=True):
            assert other == pytest.approx(numbers[0], abs=1e-12)
            torch.testing.assert_close(gradient, slopes[0], rtol=0, atol=1e-10)
        # Central differences of the loss along a direction in all weights; their error is of second order.
        model.backbone.layout = packed_states
        generator = torch.Generator().manual_seed(1)
        direction = {
            name: torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            for name, tensor in model.trainable().items()
        }
        step, losses = 1e-6, []
        for sign in (1, -2):
            with torch.no_grad():
                for name, tensor in model.trainable().items():
                    tensor += sign * step * direction[name]
            losses.append(objective.backward(model, drawn, LARGE)["loss"])
        slope = sum(float((slopes[0][name] * direction[name]).sum()) for name in slopes[0])
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)

    def test_the_loss_by_hand(self, tiny):
        model = scorer(tiny("gpt2"))
        scores = torch.tensor([[1.0, 0.0], [2.0, 2.0], [-1.0, 1.0]], dtype=torch.float64).flatten()
        model.scores = lambda texts: scores.clone().requires_grad_()  # type: ignore[method-assign]
        metrics = BradleyTerry(margin=0.25, centre=0.1).backward(model, examples(model, BradleyTerry()), LARGE)
        # Differences minus margins: 1 - 0.25, 0 - 0.5 (the margin of the row), -2 - 0.25; squared sums: 1, 16, 0.
        losses = [math.log1p(math.exp(-x)) for x in (0.75, -0.5, -2.25)]
        assert metrics["loss"] == pytest.approx((sum(losses) + 0.1 * 17) / 3, abs=1e-12)
        # One right, one tie, one wrong.
        assert metrics["preference/accuracy"] == pytest.approx(0.5)

    def test_the_unused_head_of_the_backbone_is_not_trained(self, tiny):
        untied, tied = scorer(tiny("llama")), scorer(tiny("qwen2"))
        assert not any("lm_head" in name for name in untied.trainable())
        assert any("embed_tokens" in name for name in tied.trainable())


def test_before_training_all_scores_are_equal(tiny):
    model = RewardModel(load_policy(tiny("gpt2"), dtype="float64"), 64)
    objective = BradleyTerry()
    numbers = metric_values(objective.sums(model, examples(model, objective)), objective.metrics)
    assert numbers == {"preference_accuracy": 0.5, "preference_nll": pytest.approx(math.log(2)), "preference_margin": 0}


class TestCalibration:
    def test_the_error_by_hand(self):
        confidence = np.array([0.52, 0.54, 0.91, 0.93, 1.0])
        right = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
        # Bins of a twentieth: [0.50, 0.55): |1/2 - 0.53| * 2; [0.90, 0.95): |1 - 0.92| * 2; [0.95, 1]: |0 - 1|.
        assert calibration_error(confidence, right) == pytest.approx((0.06 + 0.16 + 1.0) / 5)
        rows = reliability(confidence, right)
        assert [row["pairs"] for row in rows] == [2, 2, 1]
        assert rows[1] == pytest.approx(
            {"low": 0.9, "high": 0.95, "pairs": 2, "confidence": 0.92, "accuracy": 1.0}
        )  # fmt: skip

    def test_the_error_by_chance_shrinks_with_more_pairs(self):
        few = error_by_chance(np.full(20, 0.7))
        many = error_by_chance(np.full(2000, 0.7))
        # One bin: the mean of |share - 0.7| over n draws is sqrt(2 / pi) * sqrt(0.21 / n): 0.082 and 0.0082.
        assert few[0] == pytest.approx(0.082, abs=0.006)
        assert many[0] == pytest.approx(0.0082, abs=0.0006)
        assert few[0] < few[1] < 0.25


def recipe(model: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    write_lines("pairs.jsonl", rows)
    changes = {
        "steps": 8, "optimizer": {"learning_rate": 1e-3}, "reward_model": {"head_learning_rate": 0.03}, **changes
    }  # fmt: skip
    return supervised_recipe("reward-model", model, "pairs.jsonl", format="pairs", **changes)


def pairs(*, shuffled: bool = False) -> list[dict[str, Any]]:
    """Return fifty prompts whose preferred answer follows a rule or, if shuffled, a coin."""
    coin = random.Random(3)
    rows = []
    for subject in SUBJECTS:
        answers = [" sang", " fell"]
        if shuffled and coin.random() < 0.5:
            answers.reverse()
        rows.append({"prompt": subject, "chosen": answers[0], "rejected": answers[1]})
    return rows


def trained(tiny: Any, **changes: Any) -> burnish.SupervisedResult:
    return burnish.reward_model(recipe(tiny("llama"), pairs(), **changes), run_dir="run", observer=QuietProgress())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here")
class TestRuns:
    @pytest.mark.slow
    def test_a_rule_is_learnt_and_a_coin_is_not(self, tiny):
        result = trained(tiny)
        entry = result.evaluation["preference_accuracy"]
        assert (entry["before"], entry["after"]) == (0.5, 1.0)
        assert result.evaluation["preference_nll"]["after"] < 0.4
        assert result.calibration is not None
        assert sum(row["pairs"] for row in result.calibration["table"]) == result.calibration["pairs"]
        coin = burnish.reward_model(
            recipe(tiny("llama"), pairs(shuffled=True), data={**recipe_data(), "held_out_percent": 50}),
            run_dir="coin", observer=QuietProgress(),
        )  # fmt: skip
        # About 25 pairs: with a coin, the accuracy stays within three standard deviations of a half.
        assert abs(coin.evaluation["preference_accuracy"]["after"] - 0.5) < 0.3
        assert coin.evaluation["preference_nll"]["after"] > 0.6

    @pytest.mark.slow
    @pytest.mark.parametrize("lora", [None, {"rank": 4}])
    def test_the_saved_model_scores_as_the_trained_one_and_resumes(self, tiny, lora):
        policy = {"model": str(tiny("llama")), **({"lora": lora} if lora else {})}
        result = trained(tiny, steps=2, policy=policy)
        judge = load_reward_model(str(result.run_dir))
        assert judge.max_tokens == 64 and float(judge.head.abs().max()) > 0
        prompt = Prompt("p", "Anna in town")
        texts = [Completion(prompt, (), (), text, (), "stop") for text in (" sang", " fell")]
        scores = judge.score_texts(texts)
        assert scores[0] > scores[1]
        held = json.loads((result.run_dir / "evaluation" / "after.json").read_text())["examples"]
        assert {round(one["margin"], 4) for one in held} != {0.0}
        longer = burnish.reward_model(
            recipe(tiny("llama"), pairs(), steps=4, policy=policy), run_dir="whole", observer=QuietProgress()
        )  # fmt: skip
        # The same recipe with two of four steps, and two more.
        shutil.copytree(result.run_dir, "again", symlinks=True)
        burnish.reward_model(resume="again", extend=2, observer=QuietProgress())
        for name in (HEAD, "adapter_model.safetensors" if lora else "model.safetensors"):
            assert Path("again/model", name).read_bytes() == (longer.run_dir / "model" / name).read_bytes()

    @pytest.mark.slow
    def test_the_command(self, tiny):
        import tomli_w

        Path("small.toml").write_text(tomli_w.dumps(recipe(tiny("llama"), pairs(), steps=1)))
        done = CliRunner().invoke(app, ["reward-model", "small.toml", "--run-dir", "run", "--quiet"])
        assert done.exit_code == 0, done.output
        assert "preference accuracy" in done.stdout and "mean conf." in done.stdout

    def test_rows_that_are_not_pairs_are_rejected(self, tiny):
        rows = [{"prompt": one["prompt"], "completion": one["chosen"]} for one in pairs()]
        changed = recipe(tiny("llama"), rows, data={**recipe_data(), "format": "completion"})
        with pytest.raises(InputError, match="learns from pairs"):
            burnish.reward_model(changed, run_dir="run", observer=QuietProgress())

    def test_a_margin_that_is_not_a_number_is_rejected(self, tiny):
        rows = [{**row, "margin": "much"} for row in pairs()]
        with pytest.raises(InputError, match="'margin' is much, not a finite number"):
            burnish.reward_model(recipe(tiny("llama"), rows), run_dir="run", observer=QuietProgress())


def recipe_data() -> dict[str, Any]:
    return {"use": "jsonl", "path": "pairs.jsonl", "format": "pairs"}


@pytest.fixture(scope="module")
def judge(tiny, tmp_path_factory) -> Path:
    """Return the folder of a saved reward model with different scores for different texts."""
    folder = tmp_path_factory.mktemp("judge")
    model = RewardModel(load_policy(tiny("qwen2")), 32)
    with torch.no_grad():
        model.head.copy_(torch.linspace(-1, 1, len(model.head)))
    model.save(folder)
    return folder


class TestReward:
    def test_it_scores_as_the_model_in_any_batch(self, judge):
        model = load_reward_model(str(judge))
        prompts = [Prompt("a", "Shares fell"), Prompt("b", "The minister said"), Prompt("a", "Shares fell")]
        texts = [" after", " that the law", " 我爱你。"]
        completions = [Completion(p, (), (), t, (), "stop") for p, t in zip(prompts, texts, strict=True)]
        together = REWARDS.get("reward_model").function(completions, path=str(judge))
        alone = [score for one in completions for score in model.score_texts([one])]
        assert together == pytest.approx(alone, abs=1e-5)
        # By hand: prompt, text and end-of-text token through the whole model.
        ids = [*model.backbone.encode("The minister said"), *model.backbone.encode(" that the law"), 1]
        states = get_backbone(model.backbone.model)(input_ids=torch.tensor([ids]), use_cache=False)[0]
        assert together[1] == pytest.approx(float(states[0, -1] @ model.head), abs=1e-5)

    def test_a_control_token_in_a_text_is_text(self, judge):
        model = load_reward_model(str(judge))
        prompt = Prompt("a", "The <|end|>")
        forged = Completion(prompt, (), (), " law<|end|>", (), "length")
        pieces = [*map(model.backbone.encode, ("The ", "<", "|end|>", " law", "<", "|end|>"))]
        ids = [token for piece in pieces for token in piece]
        states = get_backbone(model.backbone.model)(input_ids=torch.tensor([ids]), use_cache=False)[0]
        assert 1 not in ids
        assert model.score_texts([forged]) == [pytest.approx(float(states[0, -1] @ model.head), abs=1e-5)]

    def test_a_control_token_in_an_answer_of_a_conversation_is_text(self, tiny_chat):
        model = RewardModel(load_policy(tiny_chat), 64, "chat")
        prompt = Prompt("a", "who", messages=(Message("user", "who"),))
        read = model._encoded(Completion(prompt, (), (), "me<|end|><user>x", (), "stop"))
        assert read.token_ids.count(1) == 1 and read.token_ids[-1] == 1, "only the end of the turn is one"
        assert model.backbone.tokenizer.decode(read.token_ids) == "me<|end|><user>x<|end|>"

    def test_a_truncated_text_has_no_end_token_and_a_long_one_is_cut(self, judge):
        model = load_reward_model(str(judge))
        prompt = Prompt("a", "Shares fell")
        stopped, cut = (Completion(prompt, (), (), " after", (), reason) for reason in ("stop", "length"))
        assert model.score_texts([stopped]) != model.score_texts([cut])
        long, longer = (Completion(prompt, (), (), " won" * times, (), "stop") for times in (200, 300))
        assert model.score_texts([long]) == model.score_texts([longer])
        with pytest.raises(InputError, match="this reward model reads 32 with the answer"):
            model.score_texts([Completion(Prompt("a", "Shares fell " * 40), (), (), "x", (), "stop")])

    def test_burnish_score(self, judge):
        arguments = ["score", " after", " won", "--use", "reward_model", "--set", f"reward_model.path={judge}"]
        done = CliRunner().invoke(app, [*arguments, "--prompt", "Shares fell", "--json"])
        assert done.exit_code == 0, done.output
        rows = json.loads(done.stdout)
        assert rows[0]["parts"]["reward_model"] != rows[1]["parts"]["reward_model"]

    @pytest.mark.parametrize(
        ("path", "message"),
        [("", "there is no such folder"), ("nowhere", "there is no such folder"), ("other", f"it has no {HEAD}"),
         ("early", "no checkpoint yet"), ("broken", "cannot be read")],
    )  # fmt: skip
    def test_a_folder_without_a_reward_model_is_rejected_in_one_line(self, here, tiny, judge, path, message):
        shutil.copytree(tiny("llama"), "other")
        Path("early").mkdir()
        Path("early/recipe.toml").write_text('kind = "reward-model"\n')
        shutil.copytree(judge, "broken")
        Path("broken", HEAD).write_bytes(b"nonsense")
        with pytest.raises(InputError, match=message) as caught:
            REWARDS.get("reward_model").function([Completion(Prompt("a", "b"), (), (), "c", (), "stop")], path=path)
        assert "\n" not in str(caught.value)

    def test_a_recipe_with_a_missing_reward_model_is_rejected_early(self, here):
        reward = [{"use": "reward_model", "path": "nowhere"}]
        with pytest.raises(InputError, match=r"reward\.0: reward model 'nowhere'"):
            burnish.load_recipe({"name": "x", "reward": reward})

    @pytest.mark.slow
    def test_it_trains_a_policy(self, here, tiny, judge):
        shutil.copytree(judge, "judge")
        recipe_ = {
            "name": "x", "steps": 2, "policy": {"model": str(tiny("llama"))}, "task": {"use": f"{__name__}:Heads"},
            "sampling": {"max_new_tokens": 4, "samples_per_prompt": 4, "prompts_per_step": 2},
            "reward": [{"use": "reward_model", "path": "judge"}], "evaluation": {"resamples": 100},
        }  # fmt: skip
        result = burnish.train(recipe_, run_dir="run", observer=QuietProgress())
        assert result.metrics[-1]["reward/std"] > 0
        assert f'path = "{Path("judge").absolute()}"' in (result.run_dir / "recipe.toml").read_text()


class Heads:
    """A task with a few prompts."""

    def train(self) -> list[Prompt]:
        return [Prompt(text, text) for text in ("Shares fell", "The minister said")]

    def evaluation(self) -> list[Prompt]:
        return [Prompt(text, text) for text in ("The home team", "won the match")]
