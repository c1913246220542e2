"""Fine-tuning and preference optimisation: gradients, learnt tokens, and complete runs on a tiny model."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from typer.testing import CliRunner

import burnish
from burnish.catalogue.convert import resolve_model
from burnish.cli.app import app
from burnish.data.rows import Conversation, PreferencePair, PromptCompletion
from burnish.data.splits import digest
from burnish.errors import InputError
from burnish.evaluation.statistics import mean_of_units
from burnish.policies.loading import load_policy
from burnish.reports.terminal.progress import PlainProgress, QuietProgress
from burnish.run.folder import comparable
from burnish.run.interrupts import Interrupted
from burnish.supervised.dataset import select_units
from burnish.supervised.dpo import PairPreference
from burnish.supervised.encoding import Encoder
from burnish.supervised.objective import (
    PLAIN,
    Example,
    ExampleSums,
    SumMetric,
    compare_metrics,
    metric_values,
    sums_from_json,
    sums_to_json,
)
from burnish.supervised.recipe import Preference
from burnish.supervised.sft import FineTuning
from burnish.training.batching import TokenBudget
from burnish.types import Message
from tests.fakes import SUBJECTS, InterruptingObserver, supervised_recipe, write_lines

SMALL, LARGE = TokenBudget(1, 1), TokenBudget(10_000, 10_000)
TEXTS = [
    PromptCompletion("The minister said", " on Monday that", digest("1")),
    PromptCompletion("The minister said", " that the law", digest("1")),
    PromptCompletion("Shares fell", " after", digest("2")),
    PromptCompletion("", "The home team won the match in the last minute", digest("3")),
]
PAIRS = [
    PreferencePair("The minister said", " on Monday", " one thousand jobs", digest("1")),
    PreferencePair("The minister said", " that the new law", " won", digest("1")),
    PreferencePair("Shares", " fell after", " sang on the way home", digest("2")),
]


@pytest.fixture
def policy(tiny):
    # GPT-2 computes in float64 throughout; Llama's norms compute in float32.
    return load_policy(tiny("gpt2"), dtype="float64")


def gradients(policy: Any) -> list[torch.Tensor]:
    slopes = [parameter.grad.clone() for parameter in policy.trainable().values()]
    for parameter in policy.trainable().values():
        parameter.grad = None
    return slopes


def perturb(policy: Any) -> None:
    """Move the policy away from its reference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def examples(objective: Any, policy: Any, rows: Any, max_tokens: int = 24) -> list[Example]:
    encoder = Encoder(policy, max_tokens)
    return [example for row in rows for example in objective.examples(encoder, row)]


@pytest.mark.parametrize(
    ("objective", "rows"),
    [
        (FineTuning(), TEXTS),
        (PairPreference(Preference(use="dpo", beta=0.3)), PAIRS),
        (PairPreference(Preference(use="ipo", beta=0.3)), PAIRS),
    ],
    ids=["sft", "dpo", "ipo"],
)
def test_the_split_into_microbatches_changes_nothing(policy, objective, rows):
    perturb(policy)
    drawn = examples(objective, policy, rows)
    results = []
    for budget in (SMALL, LARGE):
        numbers = objective.backward(policy, drawn, budget)
        results.append((numbers, gradients(policy)))
    (first, first_slopes), (second, second_slopes) = results
    assert first == pytest.approx(second, abs=1e-10)
    assert max(float(slope.abs().max()) for slope in first_slopes) > 1e-3
    torch.testing.assert_close(first_slopes, second_slopes, rtol=0, atol=1e-10)


class TestFineTuning:
    def test_the_loss_is_the_mean_over_the_steps_learnt_tokens(self, policy):
        drawn = examples(FineTuning(), policy, TEXTS)
        texts = [text for example in drawn for text in example.texts]
        logprobs = policy.token_logprobs([text.completion() for text in texts])
        metrics = FineTuning().backward(policy, drawn, LARGE)
        # All tokens of these rows are learnt; the mean of the rows' means would differ.
        assert metrics["tokens"] == len(logprobs) == sum(len(text.token_ids) for text in texts)
        assert metrics["loss"] == pytest.approx(-float(logprobs.mean()), abs=1e-10)
        rows = FineTuning().sums(policy, drawn)
        assert metric_values(rows, FineTuning.metrics)["truth_perplexity"] == pytest.approx(
            math.exp(metrics["loss"]), rel=1e-9
        )

    def test_only_the_assistants_turns_are_learnt(self, policy):
        policy.tokenizer.chat_template = (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
        turns = [("user", "won the match"), ("assistant", "the law"), ("user", "jobs"), ("assistant", "on Monday")]
        row = Conversation(tuple(Message(*turn) for turn in turns), digest("d"))
        (example,) = examples(FineTuning(), policy, [row], 200)
        (text,) = example.texts
        learnt = [token for token, flag in zip(text.token_ids, text.learnt, strict=True) if flag]
        assert policy.decode(text.prompt_ids) == "[user]won the match[assistant]"
        assert policy.decode(text.token_ids) == "the law[user]jobs[assistant]on Monday"
        assert policy.decode(learnt) == "the lawon Monday"
        # Tokens that are not learnt do not contribute to the loss.
        logprobs = policy.token_logprobs([text.completion()])[torch.tensor(text.learnt)]
        assert FineTuning().backward(policy, [example], LARGE)["loss"] == pytest.approx(
            -float(logprobs.mean()), abs=1e-10
        )

    def test_a_long_text_becomes_windows_with_every_token_once(self, policy):
        row = TEXTS[3]
        windows = examples(FineTuning(), policy, [row], 8)
        assert len(windows) > 2
        tokens = [token for example in windows for token in example.texts[0].token_ids]
        assert tokens == [*policy.encode(row.completion), policy.tokenizer.eos_token_id]
        assert max(example.texts[0].size for example in windows) <= 8

    def test_a_text_with_a_control_token_is_rejected(self, policy):
        with pytest.raises(ValueError, match="control token"):
            FineTuning().examples(Encoder(policy, 64), PromptCompletion("a", "b<|end|>c", digest("a")))


class TestPreferring:
    @pytest.mark.parametrize(("name", "loss"), [("dpo", math.log(2)), ("ipo", (1 / 0.6) ** 2)])
    def test_before_training_all_implicit_rewards_are_zero(self, policy, name, loss):
        # pi = pi_ref: every log-ratio is 0, so -log sigmoid(0) = log 2, and (0 - 1 / (2 * 0.3))^2.
        objective = PairPreference(Preference(use=name, beta=0.3))
        drawn = examples(objective, policy, PAIRS)
        metrics = objective.backward(policy, drawn, LARGE)
        assert metrics["loss"] == pytest.approx(loss, abs=1e-9)
        numbers = metric_values(objective.sums(policy, drawn), objective.metrics)
        assert numbers["preference_accuracy"] == 0.5
        assert numbers["preference_margin"] == 0.0

    def test_the_first_dpo_gradient_is_that_of_the_likelihood_difference(self, policy):
        # d/dx -log sigmoid(beta x) at 0 is -beta/2, so the gradient is -beta/2 times the mean over pairs of the gradient of
        # log pi(chosen) - log pi(rejected).
        objective = PairPreference(Preference(use="dpo", beta=0.3))
        drawn = examples(objective, policy, PAIRS)
        objective.backward(policy, drawn, LARGE)
        slopes = gradients(policy)
        total = torch.zeros((), dtype=torch.float64)
        for example in drawn:
            chosen, rejected = (policy.logprobs([text.completion()], PLAIN).logprobs.sum() for text in example.texts)
            total = total - 0.15 * (chosen - rejected) / len(drawn)
        total.backward()
        torch.testing.assert_close(slopes, gradients(policy), rtol=0, atol=1e-10)

    def test_answers_that_are_equal_after_the_cut_are_rejected(self, policy):
        row = PreferencePair("Shares", " fell after the company", " fell after the match", digest("1"))
        (example,) = PairPreference(Preference(use="dpo", beta=0.1)).examples(Encoder(policy, 64), row)
        ids = example.texts[0].token_ids, example.texts[1].token_ids
        same = next(place for place, (one, other) in enumerate(zip(*ids, strict=False)) if one != other)
        room = len(example.texts[0].prompt_ids) + same
        with pytest.raises(ValueError, match="chosen and rejected are equal up to"):
            PairPreference(Preference(use="dpo", beta=0.1)).examples(Encoder(policy, room), row)


class TestMeasurement:
    METRIC = SumMetric("mean", "lower", "total", "count", mean_of_units)

    def test_a_units_examples_are_summed(self):
        before = [
            ExampleSums("a", {"total": 6, "count": 2}),
            ExampleSums("b", {"total": 1, "count": 1}),
            ExampleSums("a", {"total": 2, "count": 1}),
        ]
        after = [
            ExampleSums(one.unit, {**one.numbers, "total": one.numbers["total"] - one.numbers["count"]})
            for one in before
        ]
        entry = compare_metrics(before, after, [self.METRIC], resamples=100, seed=0)["mean"]
        # (6 + 1 + 2) / 4, and 1 less after training; n counts two units, not three rows.
        assert (entry["before"], entry["after"], entry["n"], entry["better"]) == (2.25, 1.25, 2, "lower")
        assert entry["interval"] == pytest.approx([-1, -1])
        assert sums_from_json(sums_to_json(before)) == before

    def test_measurements_of_other_rows_are_rejected(self):
        seen = [ExampleSums("a", {"total": 1, "count": 1}), ExampleSums("b", {"total": 1, "count": 1})]
        with pytest.raises(InputError, match="differ from those that were measured before"):
            compare_metrics(seen, seen[::-1], [self.METRIC], resamples=100, seed=0)
        with pytest.raises(InputError, match="start a new run"):
            sums_from_json("[1]")

    def test_the_selected_units_do_not_depend_on_the_order(self):
        everything = [Example(digest(str(n // 2)), ()) for n in range(40)]
        selected = select_units(everything, 5)
        assert len(selected) == 10
        assert set(selected) == set(select_units(everything[::-1], 5))


@pytest.fixture
def job(tiny, tmp_path, monkeypatch):
    """Return a factory of recipes over fifty rows whose answers follow a rule; runs go to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    write_lines("texts.jsonl", [{"prompt": subject, "completion": " sang"} for subject in SUBJECTS])
    write_lines("pairs.jsonl", [{"prompt": subject, "chosen": " sang", "rejected": " fell"} for subject in SUBJECTS])

    def recipe(verb: str, **changes: Any) -> dict[str, Any]:
        path, format = ("texts.jsonl", "completion") if verb == "sft" else ("pairs.jsonl", "pairs")
        changes = {"evaluation": {"every": 2, "resamples": 200}, "checkpoint": {"every": 2}, **changes}
        return supervised_recipe(verb, tiny("llama"), path, format=format, **changes)

    return recipe


VERBS = {"sft": burnish.sft, "prefer": burnish.prefer}


def traces(run: Path) -> dict[str, Any]:
    """Return the files and metrics that are equal to the bit in two runs of one recipe and seed."""
    contents: dict[str, Any] = {
        "metrics": [comparable(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    }
    for name in ("held_out.jsonl", "evaluation.json", "evaluation/before.json", "evaluation/after.json", "data.json"):
        contents[name] = (run / name).read_text()
    for path in sorted((run / "checkpoints").rglob("*.safetensors")):
        contents[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return contents


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "metric", "better"), [("sft", "truth_perplexity", -1), ("prefer", "preference_margin", 1)]
)
class TestRuns:
    def test_training_improves_held_out_rows_and_a_tiny_rate_does_not(self, job, verb, metric, better):
        result = VERBS[verb](job(verb), run_dir="run", observer=QuietProgress())
        entry = result.evaluation[metric]
        assert better * entry["difference"] > 0 and entry["p_value"] < 0.05
        assert result.metrics[-1]["loss"] < 0.7 * result.metrics[0]["loss"]
        if verb == "prefer":
            assert result.evaluation["preference_accuracy"]["before"] == 0.5
            assert result.evaluation["preference_accuracy"]["after"] == 1.0
        control = VERBS[verb](
            job(verb, optimizer={"learning_rate": 1e-9}, evaluation={"resamples": 200}), run_dir="control",
            observer=QuietProgress(),
        )  # fmt: skip
        assert abs(control.evaluation[metric]["difference"]) < 0.01 * abs(entry["difference"])

    def test_repeated_and_resumed_runs_have_the_same_bits(self, job, verb, metric, better):
        run = VERBS[verb]
        for name in ("first", "second"):
            run(job(verb), run_dir=name, observer=QuietProgress())
        with pytest.raises(Interrupted, match=f"saved after step 3; resume with: burnish {verb} --resume stopped"):
            run(job(verb), run_dir="stopped", observer=InterruptingObserver(3))
        run(resume="stopped", observer=QuietProgress())
        first = traces(Path("first"))
        assert traces(Path("second")) == first
        stopped = traces(Path("stopped"))
        # Stopping saved an additional checkpoint, which may still exist.
        assert {name: stopped[name] for name in first if name in stopped} == {
            name: first[name] for name in first if name in stopped
        }
        assert "checkpoints/step-6/model/model.safetensors" in stopped
        run(job(verb, seed=1), run_dir="other", observer=QuietProgress())
        assert traces(Path("other"))["metrics"] != first["metrics"]
        Path("first/checkpoints/step-6").rename("first/checkpoints/step-7")
        with pytest.raises(
            InputError, match=rf"step-7 was saved as step 6: it has.*\n.* burnish {verb} --resume first --f"
        ):
            run(resume="first", observer=QuietProgress())
        assert traces(run(resume="first", from_step=0, observer=QuietProgress()).run_dir) == first


@pytest.mark.slow
class TestRunFolders:
    def test_a_run_folder_can_be_used_as_a_model(self, job):
        with pytest.raises(Interrupted):
            burnish.sft(job("sft"), run_dir="early", observer=InterruptingObserver(2))
        assert resolve_model("early") == Path("early/model")
        first = load_policy(resolve_model("early"))
        result = burnish.prefer(
            job("prefer", policy={"model": "early"}, steps=1), run_dir="next", observer=QuietProgress()
        )
        assert all(f'{key} = "/' in (result.run_dir / "recipe.toml").read_text() for key in ("model", "path"))
        assert dict(load_policy(result.model).trainable()).keys() == dict(first.trainable()).keys()

    def test_a_run_without_a_checkpoint_names_its_command(self, job):
        Path("early").mkdir()
        Path("early/recipe.toml").write_text('kind = "sft"\n')
        with pytest.raises(InputError, match="no checkpoint yet; resume with: burnish sft --resume early"):
            resolve_model("early")

    def test_resuming_with_changed_data_is_rejected(self, job):
        with pytest.raises(Interrupted):
            burnish.sft(job("sft"), run_dir="run", observer=InterruptingObserver(2))
        with open("texts.jsonl", "a", encoding="utf-8") as file:
            file.write('{"prompt": "new", "completion": " new"}\n')
        with pytest.raises(InputError, match=r"texts\.jsonl has changed since run began"):
            burnish.sft(resume="run", observer=QuietProgress())

    def test_another_command_cannot_resume_it(self, job):
        burnish.sft(job("sft", steps=1), run_dir="run", observer=QuietProgress())
        with pytest.raises(InputError, match="for `burnish sft`, not for `burnish prefer`"):
            burnish.prefer(resume="run", observer=QuietProgress())
        with pytest.raises(InputError, match="for `burnish sft`, not for `burnish train`"):
            burnish.train(resume="run", observer=QuietProgress())

    def test_the_reference_of_a_low_rank_adapter_is_its_base(self, job, tiny):
        policy = {"model": str(tiny("llama")), "lora": {"rank": 4}}
        result = burnish.prefer(
            job("prefer", policy=policy, optimizer={"learning_rate": 3e-2}), run_dir="run", observer=QuietProgress()
        )  # fmt: skip
        assert result.evaluation["preference_accuracy"]["before"] == 0.5
        assert result.evaluation["preference_margin"]["difference"] > 0
        assert (result.model / "adapter_model.safetensors").is_file()


@pytest.mark.slow
class TestCommands:
    @pytest.mark.parametrize(("verb", "shown"), [("sft", "true-text perplexity"), ("prefer", "preference accuracy")])
    def test_a_recipe_in_a_file(self, job, verb, shown):
        Path("small.toml").write_text(tomli_w.dumps(job(verb)))
        checked = CliRunner().invoke(app, [verb, "small.toml", "--dry-run"])
        assert tomllib.loads(checked.stdout)["batch"]["max_tokens"] == 64
        done = CliRunner().invoke(app, [verb, "small.toml", "--run-dir", "run", "--quiet", "--set", "steps=1"])
        assert done.exit_code == 0
        assert shown in done.stdout and "model     run/model" in done.stdout
        assert "report    run/report.html" in done.stdout and Path("run/report.html").is_file()

    def test_progress_shows_the_loss(self, job):
        stream = io.StringIO()
        burnish.sft(job("sft", steps=1), run_dir="run", observer=PlainProgress(stream))
        assert "step 1/1  loss " in stream.getvalue()


class TestBadInput:
    @pytest.mark.parametrize(
        ("verb", "data", "message"),
        [
            ("sft", {"path": "pairs.jsonl", "format": "pairs"}, "these rows are pairs"),
            ("prefer", {"path": "texts.jsonl", "format": "completion"}, "these rows are texts"),
            ("sft", {"path": "none.jsonl", "format": "text"}, "cannot be read: No such file"),
            ("sft", {"path": "texts.jsonl", "format": "text"}, "50 of 50 rows cannot be used, the first is line 1"),
            ("sft", {"path": "empty.jsonl", "format": "text"}, "has no rows"),
            ("sft", {"path": "one.jsonl", "format": "text"}, "held_out_percent = 25 leaves"),
        ],
    )
    def test_it_is_rejected_in_one_line_and_leaves_no_folder(self, job, verb, data, message):
        Path("empty.jsonl").write_text("\n")
        Path("one.jsonl").write_text('{"text": "a"}\n')
        with pytest.raises(InputError, match=message) as caught:
            VERBS[verb](job(verb, data={"use": "jsonl", **data}), run_dir="run", observer=QuietProgress())
        assert "\n" not in str(caught.value)
        assert not Path("run/recipe.toml").exists()

    def test_prompts_that_leave_no_room_are_counted_as_broken(self, job):
        with pytest.raises(InputError, match=r"rows cannot be used, the first is line 2: .* no room for an answer"):
            burnish.sft(job("sft", batch={"max_tokens": 3}), run_dir="run", observer=QuietProgress())

    def test_unusable_rows_are_listed(self, job):
        with open("texts.jsonl", "a", encoding="utf-8") as file:
            file.write("{broken\n")
        recipe = job("sft", steps=1)
        recipe["data"]["max_broken"] = 0.05
        result = burnish.sft(recipe, run_dir="run", observer=QuietProgress())
        listed = json.loads((result.run_dir / "data.json").read_text())
        assert [one["place"] for one in listed["broken"]] == ["line 51"]
        assert listed["training_examples"] + listed["held_out_examples"] == 50

    def test_a_non_finite_step_is_reported(self, job):
        with pytest.raises(burnish.BurnishError, match=r"start again with a lower optimizer\.learning_rate .*row"):
            burnish.sft(
                job("sft", optimizer={"learning_rate": 1e6, "max_grad_norm": None}), run_dir="run",
                observer=QuietProgress(),
            )  # fmt: skip
