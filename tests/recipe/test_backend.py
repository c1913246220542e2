"""The ``[backend]`` table: what is refused, and what it changes in a resolved recipe."""

from __future__ import annotations

import pytest

from burnish.backends import preflight
from burnish.errors import InputError
from burnish.recipe.schema import Recipe, load_recipe
from burnish.run.launch import sets_backend

RAY = "backend.use=ray"
SHARD = [RAY, "backend.learners=2", "backend.shard=true"]
VLLM = [RAY, "backend.engine=vllm"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["backend.samplers=2"], 'backend: samplers belongs to use = "ray"'),
        (["backend.use=slurm"], "backend.use = 'slurm': must be 'local' or 'ray'"),
        ([RAY, "backend.samplers=5"], "backend.samplers = 5: a step has only 4 prompts"),
        ([RAY, "backend.samplers=0"], "backend.samplers = 0: must be at least 1"),
        ([RAY, "backend.sampler=2"], "unknown key 'backend.sampler' (did you mean 'samplers'?)"),
        ([RAY, "backend.address="], "address is empty"),
        ([RAY, "backend.gpus=1.5"], "gpus = 1.5: Ray gives a part of one GPU or whole GPUs; use 1"),
        ([RAY, "policy.device=cuda"], 'backend.gpus = 0: policy.device = "cuda" needs a GPU for each sampler'),
        ([RAY, "policy.device=cpu", "backend.gpus=1"], 'policy.device = "cpu" uses none'),
        ([RAY, "backend.engine=sglang"], "backend.engine = 'sglang': must be 'burnish' or 'vllm'"),
        (["backend.engine=vllm"], 'backend: engine belongs to use = "ray"'),
        ([RAY, "backend.python=/usr/bin/python3"], 'python belongs to engine = "vllm"'),
        ([*VLLM, "backend.gpus=2", "policy.device=cuda"], 'gpus = 2: with engine = "vllm" a sampler uses one GPU'),
        ([*VLLM, "policy.use=lstm"], 'backend.engine = "vllm" samples from language models, not policy.use = "lstm"'),
        ([*VLLM, "policy.dtype=float64"], 'policy.dtype = "float64": vLLM has no such numbers'),
        ([*VLLM, "policy.lora.dora=true"], "policy.lora.dora: not available with vLLM"),
        ([*VLLM, "sampling.top_p=0.9"], "sampling.top_p = 0.9: not available in training with vLLM"),
        ([*VLLM, "sampling.min_new_tokens=4"], "sampling.min_new_tokens = 4: not available in training with vLLM"),
        (
            [*VLLM, "evaluation.sampling.min_p=0.1", "evaluation.sampling.top_p=0.9"],
            "evaluation.sampling: vLLM applies min_p before top_p",
        ),
        ([RAY, "backend.segment=8", "backend.max_staleness=1"], "segment = 8: texts are drawn in parts only where"),
        ([RAY, "backend.colocate=true"], "colocate: the driver is the only learner"),
        ([RAY, "backend.shard=true"], "backend.shard: there is nothing to split with learners = 1"),
        ([*SHARD, "policy.use=lstm"], 'backend.shard: splits language models, not policy.use = "lstm"'),
        ([*SHARD, "algorithm.use=ppo"], "backend.shard: a critic is not split among learners yet"),
        ([*SHARD, "algorithm.kl.reset_every=5"], "algorithm.kl.reset_every: not available with backend.shard"),
        (["backend.shard=true"], 'backend: shard belongs to use = "ray"'),
        ([RAY, "policy.use=lstm", "sampling.nlpo_top_p=0.9"], "sampling.nlpo_top_p: not available with backend.use"),
    ],
)
def test_what_cannot_work_is_refused_by_key(overrides, problem):
    with pytest.raises(InputError) as refused:
        load_recipe("news", overrides)
    assert problem in str(refused.value)


def test_a_cluster_cannot_reuse_what_sampling_computed():
    here, there = (load_recipe("news", overrides).resolved() for overrides in ([], [RAY, "backend.samplers=2"]))
    assert here.optimizer.reuse_sampling and not there.optimizer.reuse_sampling
    again = Recipe.model_validate(load_recipe("news", [RAY]).resolved().model_dump())
    assert not again.optimizer.reuse_sampling


def test_another_program_that_samples_is_corrected_for_by_default():
    def form(*overrides: str) -> str:
        return load_recipe("news", overrides).resolved().algorithm.importance.form

    assert form(RAY) is None and form(*VLLM) == "truncate"
    assert form(*VLLM, "algorithm.importance.limit=3") == "truncate"
    assert form(*VLLM, "algorithm.importance.form=mask") == "mask"
    assert form(*VLLM, "algorithm.importance.form=none") == "none"
    again = Recipe.model_validate(
        load_recipe("news", [*VLLM, "algorithm.importance.form=none"]).resolved().model_dump()
    )
    assert again.resolved().algorithm.importance.form == "none"


def test_a_resumed_run_may_change_the_python_of_its_samplers_but_not_what_they_draw_with():
    assert sets_backend("backend.python=/x") and sets_backend(" backend.samplers = 2")
    assert not sets_backend("backend.engine=vllm") and not sets_backend("steps=3")


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    preflight.check_backend_package(load_recipe("news"))
    with pytest.raises(InputError, match=r"pip install 'burnish\[ray\]'"):
        preflight.check_backend_package(load_recipe("news", [RAY]))


def test_an_older_torch_cannot_split(monkeypatch):
    recipe = load_recipe("news", SHARD)
    preflight.check_backend_package(recipe)
    monkeypatch.setattr(preflight, "version", lambda package: "2.9.1+cpu")
    with pytest.raises(InputError, match=r"backend.shard needs torch 2\.13 or later, and 2\.9\.1\+cpu is installed"):
        preflight.check_backend_package(recipe)
