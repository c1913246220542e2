"""Keras models, under their torch backend, as policies. Skipped without the extra ``keras``."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from burnish.backends.local import build
from burnish.errors import InputError
from burnish.generation.modules import ModuleSampler
from burnish.policies.module import ModulePolicy, is_keras
from burnish.policies.vocabulary import CharacterVocabulary
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import Checkpoint, Run
from burnish.training.step import train_step
from burnish.types import Prompt, SamplingParams
from tests.fakes import toy_recipe

pytestmark = [
    pytest.mark.keras,
    pytest.mark.slow,
    # Keras 3.15 warns under numpy 2.4 when it copies a model.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.skipif(
        importlib.util.find_spec("keras") is None, reason="Keras is not installed: pip install 'burnish[keras]'"
    ),
]
WORLD = CharacterVocabulary(tuple("我爱你。"), begin=3, end=3)
MODEL = """
import keras

def make(vocabulary_size, units=12):
    return keras.Sequential([
        keras.layers.Embedding(vocabulary_size, 8),
        keras.layers.LSTM(units, return_sequences=True),
        keras.layers.Dense(vocabulary_size, activation="softmax"),
    ])

def last_only(vocabulary_size):
    return keras.Sequential([
        keras.layers.Embedding(vocabulary_size, 8), keras.layers.LSTM(4), keras.layers.Dense(vocabulary_size),
    ])
"""


@pytest.fixture(autouse=True)
def maker(tmp_path, monkeypatch):
    os.environ["KERAS_BACKEND"] = "torch"
    (tmp_path / "tutorial_model.py").write_text(MODEL)
    (tmp_path / "world.json").write_text(
        '{"kind": "character", "tokens": ["我", "爱", "你", "。"], "begin": 3, "end": 3}', encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)


def recipe(*overrides, make="make", scores="probabilities"):
    return toy_recipe(
        "policy.use=module", f"policy.module=tutorial_model:{make}", f"policy.scores={scores}",
        "policy.vocabulary=world.json", "sampling.samples_per_prompt=16", "optimizer.learning_rate=0.05", *overrides,
    )  # fmt: skip


def test_a_keras_model_learns_the_toy():
    learner, _ = build(recipe())
    assert is_keras(learner.policy.module)
    found = [train_step(learner).metrics["reward/mean"] for _ in range(40)]
    # Nearly uniform at first: a reward of 1/256.
    assert sum(found[:3]) / 3 < 0.05
    assert sum(found[-5:]) / 5 > 0.8, found


def test_sampler_and_trainer_agree_and_samples_do_not_depend_on_the_batch():
    learner, _ = build(recipe())
    policy, sampling = learner.policy, SamplingParams(5, 0.8)
    sampler = ModuleSampler(policy)
    prompts = [Prompt("a", ""), Prompt("b", "我爱"), Prompt("c", "你")]
    groups = sampler.sample(prompts, samples_per_prompt=4, sampling=sampling, seed=(1,))
    (alone,) = sampler.sample(prompts[1:2], samples_per_prompt=4, sampling=sampling, seed=(1,))
    assert [c.token_ids for c in alone.completions] == [c.token_ids for c in groups[1].completions]
    done = [c for group in groups for c in group.completions]
    recorded = torch.tensor([logprob for c in done for logprob in c.sampler_logprobs])
    torch.testing.assert_close(policy.logprobs(done, sampling).logprobs.detach(), recorded, rtol=0, atol=1e-5)


def test_a_checkpoint_fits_a_model_whose_layers_are_numbered_differently(tmp_path):
    one, _ = build(recipe("reward.0.use=repetition"))
    train_step(one)
    (tmp_path / "model").mkdir()
    run = Run(tmp_path)
    Checkpointer(run, one, keep=1).write(tmp_path)
    (tmp_path / "state.json").write_text('{"step": 1, "baseline": 0.0}')
    two, _ = build(recipe("seed=1", "reward.0.use=repetition"))
    Checkpointer(run, two, keep=1).restore(Checkpoint(1, tmp_path))
    before = [tensor.detach().clone() for tensor in one.policy.trainable().values()]
    for learner in (one, two):
        learner.recipe = one.recipe
        learner.credit.baseline.mean = 0.0
        train_step(learner)
    assert list(one.policy.trainable()) == list(two.policy.trainable())
    for old, first, second in zip(
        before, one.policy.trainable().values(), two.policy.trainable().values(), strict=True
    ):
        assert not torch.equal(old, first)
        assert torch.equal(first, second)


def test_one_seed_gives_the_same_weights():
    first, second, other = (build(recipe(f"seed={seed}"))[0].policy for seed in (3, 3, 4))
    for one, two, three in zip(*(policy.trainable().values() for policy in (first, second, other)), strict=True):
        assert torch.equal(one, two)
        assert one.ndim == 1 or not torch.equal(one, three)


def test_refusals():
    with pytest.raises(InputError, match="not logits"):
        build(recipe(scores="logits"))
    with pytest.raises(InputError, match="return_sequences=True"):
        build(recipe(make="last_only", scores="logits"))
    with pytest.raises(InputError, match="a Keras model sets its own dtype"):
        build(recipe("policy.dtype=float64"))


def test_a_model_that_is_not_built_yet():
    import keras

    model = keras.Sequential([
        keras.layers.Embedding(4, 3),
        keras.layers.LSTM(3, return_sequences=True),
        keras.layers.Dense(4),
    ])  # fmt: skip
    policy = ModulePolicy(model, WORLD, scores="logits")
    assert len(policy.trainable()) == 1 + 3 + 2
