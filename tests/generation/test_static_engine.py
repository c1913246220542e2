"""The engine of fixed shape, step by step on a CPU: the samples of the other engine."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import import_utils

from burnish.errors import InputError
from burnish.generation import static_engine
from burnish.generation.engine import Engine, make_sampler
from burnish.generation.rows import RowSampler
from burnish.generation.static_engine import StaticEngine
from burnish.policies.loading import load_model, load_policy
from burnish.types import Completion, Prompt, SamplingParams

TEXTS = ["The home team", "Shares fell after the company said that it would", "我爱", "a"]
ASKED = [Prompt(f"p{index}", text) for index, text in enumerate(TEXTS)]
SLOW = pytest.mark.slow
KINDS = ["llama", *(pytest.param(kind, marks=SLOW) for kind in ("gpt2", "qwen2", "neox", "qwen3_moe"))]
SAMPLING = {
    "plain": SamplingParams(20, 0.9),
    "top": SamplingParams(20, 1.0, top_p=0.8, top_k=20),
    "min-p": SamplingParams(20, 1.3, min_p=0.05),
    "stops": SamplingParams(20, 1.0, stop=("e", "t s"), min_new_tokens=3),
    "late ends": SamplingParams(20, 1.2, min_new_tokens=9),
    "one": SamplingParams(1),
}


@pytest.fixture(scope="module")
def loaded(tiny):
    """Return a function from the kind of model to the model in float64, which tests share and do not change."""
    return cache(lambda kind: load_model(tiny(kind), dtype="float64"))


def sampled(sampler: RowSampler, sampling: SamplingParams, samples: int = 5) -> list[Completion]:
    groups = sampler.sample(ASKED, samples_per_prompt=samples, sampling=sampling, seed=(3, 1))
    return [one for group in groups for one in group.completions]


def assert_same(ours: list[Completion], theirs: list[Completion]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        np.testing.assert_allclose(one.sampler_logprobs, other.sampler_logprobs, rtol=0, atol=1e-9)
        np.testing.assert_allclose(one.sampler_log_masses, other.sampler_log_masses, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("options", SAMPLING)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_other_engine(loaded, kind, options, rows):
    sampling = SAMPLING[options]
    assert_same(sampled(StaticEngine(loaded(kind), rows=rows), sampling), sampled(Engine(loaded(kind)), sampling))


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_how_often_the_host_looks_changes_nothing(loaded, monkeypatch, chunk):
    monkeypatch.setattr(static_engine, "CHUNK", chunk)
    monkeypatch.setattr(static_engine, "WIDTH", 8)
    monkeypatch.setattr(static_engine, "PREFILL_TOKENS", 5)
    sampling = SAMPLING["stops"]
    assert_same(sampled(StaticEngine(loaded("llama"), rows=4), sampling), sampled(Engine(loaded("llama")), sampling))


def test_a_second_call_reuses_the_buffers_and_sees_new_weights(tiny):
    policy = load_policy(tiny("llama"), dtype="float64")
    engine, sampling = StaticEngine(policy, rows=8), SAMPLING["plain"]
    sampled(engine, sampling)
    stepper = engine._stepper
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.3)
    assert_same(sampled(engine, sampling), sampled(Engine(policy), sampling))
    assert engine._stepper is stepper
    sampled(engine, SAMPLING["top"])
    assert engine._stepper is not stepper


def test_no_step_looks_at_a_number_or_takes_a_new_shape(loaded, monkeypatch):
    """What a CUDA graph forbids: a value that the host reads, and shapes that depend on one."""
    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "item")
    seen: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.__name__.split(".")[0]
            result = function(*args, **(kwargs or {}))
            tensors = result if isinstance(result, tuple) else (result,)
            seen.append((name, tuple(tuple(one.shape) for one in tensors if isinstance(one, torch.Tensor))))
            return result

    steps: list[list[tuple[str, tuple[tuple[int, ...], ...]]]] = []
    real = static_engine._Stepper._step

    def watched(self):
        seen.clear()
        with Watch():
            real(self)
        steps.append(list(seen))

    monkeypatch.setattr(static_engine._Stepper, "_step", watched)
    # What transformers asks before it looks at positions.
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    for options in ("plain", "top", "min-p", "late ends"):
        steps.clear()
        sampled(StaticEngine(loaded("llama"), rows=64), SAMPLING[options])
        assert len(steps) > 16 and not {name for step in steps for name, _ in step} & set(forbidden)
        assert all(step == steps[0] for step in steps), "each step runs the same operations on the same shapes"


def test_rows_are_halved_where_memory_is_short(loaded, monkeypatch):
    asked = []
    real = StaticEngine._fill

    def fill(self, encoded, rows, shape, text):
        asked.append(shape.rows)
        if shape.rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, encoded, rows, shape, text)

    monkeypatch.setattr(StaticEngine, "_fill", fill)
    engine, sampling = StaticEngine(loaded("llama"), rows=64), SAMPLING["plain"]
    assert_same(sampled(engine, sampling), sampled(Engine(loaded("llama")), sampling))
    sampled(engine, sampling)
    assert asked == [20, 10, 5, 5]


def test_a_text_beyond_the_positions_is_refused_and_one_at_their_end_is_drawn(loaded):
    model = loaded("gpt2")
    positions = model.max_positions
    engine, prompt = StaticEngine(model, rows=2), [Prompt("long", "a" * 4)]
    left = positions - len(model.encode_prompt(prompt[0]))
    options = {"samples_per_prompt": 2, "seed": (1,)}
    sampling = SamplingParams(left, min_new_tokens=left)
    ours, theirs = (one.sample(prompt, sampling=sampling, **options) for one in (engine, Engine(model)))
    assert_same(list(ours[0].completions), list(theirs[0].completions))
    with pytest.raises(InputError, match="does not fit"):
        engine.sample(prompt, sampling=SamplingParams(left + 1), **options)


def test_on_a_cpu_the_other_engine_is_chosen(loaded):
    assert type(make_sampler(loaded("llama"))) is Engine
