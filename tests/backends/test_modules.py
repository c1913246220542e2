"""Modules in recipes and runs: pretraining, what is refused, what is the same when a run is taken up again."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from burnish import api
from burnish.backends.local import build
from burnish.backends.modules import build_module_policy
from burnish.errors import InputError
from burnish.policies.pretraining import learning_rate_factor, sample_windows, token_stream
from burnish.policies.vocabulary import CharacterVocabulary
from burnish.recipe.schema import load_recipe
from burnish.recipe.sections import Pretrain
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import comparable
from burnish.training.step import train_step
from burnish.types import Completion, Prompt, SamplingParams

WORLD = CharacterVocabulary(tuple("我爱你。"), begin=3, end=3)
"""The four characters of the toy; the full stop also stands before the text, as an end-of-text token does."""
TEXTS = ["the cat sat on the mat.", "a dog sat on the cat.", "我爱你。"]


def completion(prompt_ids, token_ids) -> Completion:
    return Completion(Prompt("p", ""), tuple(prompt_ids), tuple(token_ids), "", (), "length")


class TestPretraining:
    def test_the_stream_by_hand(self):
        vocabulary = CharacterVocabulary.from_texts(["ab", "b"])  # a is 2, b is 3
        stream, starts = token_stream(vocabulary, ["ab", "b"])
        assert (stream.tolist(), starts) == ([0, 2, 3, 0, 3, 0], [0, 3])
        stream, starts = token_stream(WORLD, ["我。", "爱"])
        assert (stream.tolist(), starts) == ([3, 0, 3, 1, 3], [0, 2])
        stream, starts = token_stream(CharacterVocabulary(("a", "b")), ["ab", "b"])
        assert (stream.tolist(), starts) == ([0, 1, 1], [0, 2])

    def test_windows_lie_in_the_stream_and_half_of_them_begin_a_text(self):
        found = sample_windows(torch.arange(50), [0, 20, 45], 4000, 9, (0, 3, 1))
        assert (found.diff(dim=1) == 1).all() and found.min() == 0 and found.max() == 49
        assert set(found[::2, 0].tolist()) == {0, 20, 40}, "the last begins too late for a whole window"
        assert len(set(found[1::2, 0].tolist())) == 41

    def test_rate(self):
        assert [round(learning_rate_factor(step, 40), 6) for step in (0, 1, 2, 21, 39)] == [
            0.5,
            1.0,
            1.0,
            0.5,
            0.001708,
        ]

    @pytest.mark.slow
    def test_it_learns_a_text_and_a_resumed_run_has_the_same_start(self, tmp_path):
        section = load_recipe("toy", ["policy.use=lstm", "policy.lstm={embedding=8, hidden=16}"]).policy
        section = section.model_copy(update={"pretrain": Pretrain(steps=60, learning_rate=0.03, windows=8, length=12)})

        def built(folder, texts=TEXTS):
            return build_module_policy(section, 0, texts=lambda: texts, folder=folder)[0]

        one = [completion((0,), built(None).encode(TEXTS[0]))]
        first, second = built(tmp_path / "one"), built(tmp_path / "two")
        uniform = -torch.log(torch.tensor(float(first.vocabulary.size)))
        assert first.token_logprobs(one).mean() > uniform / 2
        assert torch.equal(first.token_logprobs(one), second.token_logprobs(one)), "twice from one seed"
        # Taken up again it reads what it kept, and asks for no text.
        again = built(tmp_path / "one", texts=None)
        assert torch.equal(again.token_logprobs(one), first.token_logprobs(one))
        assert torch.equal(again.reference.token_logprobs(one), first.token_logprobs(one))

    def test_no_text(self):
        section = load_recipe("toy", ["policy.use=lstm", "policy.pretrain={steps=1}"]).policy
        with pytest.raises(InputError, match="no training text"):
            build_module_policy(section, 0, texts=lambda: [])


class TestRecipes:
    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["policy.use=module"], "needs policy.module"),
            (["policy.use=module", "policy.module=a:b"], "policy.scores is missing"),
            (["policy.use=lstm", "policy.scores=logits"], 'policy.scores belongs to policy.use = "module"'),
            (["policy.use=causal_lm", "policy.pretrain={}"], 'belongs to policy.use = "lstm" or "module"'),
            (["policy.use=lstm", "policy.lora={rank=2}"], 'policy.lora belongs to policy.use = "causal_lm"'),
            (["policy.use=lstm", "policy.vocabulary_size=300"], 'belongs to policy.vocabulary = "bpe"'),
            (["policy.use=lstm", "policy.weights=x", "policy.vocabulary=byte"], "brings its own"),
            (["policy.use=lstm", "policy.lstm={hiden=3}"], "did you mean 'hidden'"),
            (["policy.use=lstm", "policy.vocabulary_size=12", "policy.vocabulary=bpe"], "must be at least 257"),
        ],
    )
    def test_refusals(self, overrides, message):
        with pytest.raises(InputError, match=message):
            load_recipe("toy", overrides)

    @pytest.mark.parametrize(
        ("code", "options", "message"),
        [
            ("make = 3", "", "neither a torch module nor a function"),
            ("def make(): return 3", "", "does not return a torch module: it is a int"),
            ("def make(): return 1 / 0", "", "raised ZeroDivisionError"),
            ("def make(*, width=3): ...", "{widht = 2}", "did you mean 'width'"),
            ("import torch\nmake = torch.nn.Embedding(4, 4)", "{width = 2}", "takes no policy.options"),
        ],
    )
    def test_makers_that_make_nothing(self, tmp_path, monkeypatch, request, code, options, message):
        name = f"maker_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.chdir(tmp_path)
        extra = [f"policy.options={options}"] if options else []
        recipe = load_recipe("toy", ["policy.use=module", f"policy.module={name}:make", "policy.scores=logits", *extra])
        with pytest.raises(InputError, match=message):
            build_module_policy(recipe.policy, 0, texts=lambda: TEXTS)

    @pytest.mark.slow
    def test_a_module_of_ones_own_learns_the_toy(self, tmp_path, monkeypatch):
        (tmp_path / "world.json").write_text(json.dumps(WORLD.to_json()), encoding="utf-8")
        (tmp_path / "bigram_of_a_user.py").write_text(
            "import torch\n"
            "def make(vocabulary_size, *, gain=1.0):\n"
            "    table = torch.nn.Embedding(vocabulary_size, vocabulary_size)\n"
            "    torch.nn.init.constant_(table.weight, 0.0)\n"
            "    return torch.nn.Sequential(table, torch.nn.Softmax(-1))\n"
        )
        monkeypatch.chdir(tmp_path)
        recipe = load_recipe("toy", [
            "policy.use=module", "policy.module=bigram_of_a_user:make", "policy.scores=probabilities",
            "policy.vocabulary=world.json", "optimizer.learning_rate=0.2", "sampling.samples_per_prompt=16",
        ])  # fmt: skip
        learner, _ = build(recipe)
        found = [train_step(learner).metrics["reward/mean"] for _ in range(60)]
        # A uniform table says it once in 4^4 = 256 times.
        assert sum(found[:3]) / 3 < 0.05
        assert sum(found[-5:]) / 5 > 0.8, found


class TestRuns:
    OVERRIDES = (
        "policy.use=lstm",
        "policy.lstm={embedding=8, hidden=16, dropout=0.1}",
        "policy.pretrain={steps=20, learning_rate=0.03, windows=4, length=5}",
        "algorithm.kl.coefficient=0.05",
        "reward=[{use='perplexity'}]",
        "sampling.max_new_tokens=6",
        "evaluation.samples_per_prompt=2",
        "evaluation.resamples=100",
        "checkpoint.every=2",
    )

    @pytest.mark.slow
    def test_taken_up_again_it_has_the_same_bits_and_the_same_reference(self, tmp_path, monkeypatch):
        def run(**options):
            return api.train(observer=make_observer(quiet=True), **options)

        whole = run(recipe="toy", overrides=self.OVERRIDES, steps=4, run_dir=tmp_path / "whole")
        shutil.copytree(whole.run_dir, tmp_path / "cut", symlinks=True)
        for gone in ("checkpoints/step-4", "evaluation/after.json", "evaluation.json"):
            path = tmp_path / "cut" / gone
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        monkeypatch.setattr("burnish.backends.modules.pretrain", lambda *_, **__: pytest.fail("pretrained again"))
        cut = run(resume=tmp_path / "cut")
        assert [comparable(row) for row in cut.metrics] == [comparable(row) for row in whole.metrics]
        assert whole.metrics[-1]["kl"] > 0, "the reference is not what is trained"
        for name in ("model/model.safetensors", "start/model.safetensors", "model/vocabulary.json", "evaluation.json"):
            assert (cut.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes(), name
        assert (whole.run_dir / "model/model.safetensors").read_bytes() != (
            whole.run_dir / "start/model.safetensors"
        ).read_bytes()
        html = whole.report.read_text(encoding="utf-8")
        assert re.search(r"<dt>model</dt>\s*<dd>lstm</dd>", html), "the name of a model that was never loaded"

    @pytest.mark.slow
    def test_a_run_generates_and_another_starts_from_it(self, tmp_path):
        run = api.train(
            "toy", overrides=self.OVERRIDES, steps=1, run_dir=tmp_path / "one", observer=make_observer(quiet=True)
        )
        options = {"sampling": SamplingParams(4), "observer": make_observer(quiet=True)}
        first, second = (api.generate(str(run.run_dir), "我", samples=2, **options) for _ in range(2))
        assert [c.text for c in first] == [c.text for c in second]
        assert all(set(c.text) <= set("我爱你。\ufffd") for c in first)
        recipe = load_recipe("toy", ["policy.use=lstm", f"policy.weights={run.run_dir / 'model'}"])
        policy, _ = build_module_policy(recipe.policy, 7, texts=None)
        assert policy.module.recurrent.hidden_size == 16
        saved = load_file(run.run_dir / "model" / "model.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in policy.trainable().items())

    def test_a_run_that_could_not_begin_leaves_nothing(self, tmp_path):
        # The start is made, and only then is it seen that a prompt has no token to begin with.
        (tmp_path / "v.json").write_text('{"kind": "character", "tokens": ["a", "b"]}')
        overrides = ["policy.use=lstm", f"policy.vocabulary={tmp_path / 'v.json'}", "policy.pretrain={steps=1}"]
        with pytest.raises(InputError, match="no token for '我'"):
            api.train(
                "toy", overrides=overrides, run_dir=tmp_path / "run", observer=make_observer(quiet=True)
            )  # fmt: skip
        assert not (tmp_path / "run").exists()
