"""The ``[backend]`` table of a recipe: whether a run samples in its own process or on a Ray cluster."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from burnish.recipe.sections import Section


class BackendSection(Section):
    """Where a run samples, and what each sampler gets. All keys but ``use`` belong to ``use = "ray"``."""

    use: Literal["local", "ray"] = "local"
    samplers: int = Field(1, ge=1, le=4096)
    """Processes that sample, each with its own copy of the policy."""
    learners: int = Field(1, ge=1, le=1024)
    """Processes that share out an update's gradient; the driver is the first."""
    shard: bool = False
    """Whether learners split weights, gradients and moments among them, instead of a whole policy for each."""
    scorers: int = Field(0, ge=0, le=4096)
    """Processes that compute rewards; 0 leaves them to the driver."""
    address: str | None = None
    """Of a running cluster, "auto" or host:port. None starts a cluster on this machine for the run, and stops it."""
    max_staleness: int = Field(0, ge=0, le=64)
    """Steps that samples may be behind the weights that learn from them; above 0, sampling and learning overlap."""
    segment: int | None = Field(None, ge=1, le=1 << 20)
    """Tokens of a text that samplers draw at a time, when they work ahead by two steps or more; None draws all."""
    cpus: int | None = Field(None, ge=1, le=1024)
    """Threads of a sampler; None is a fair share of this machine's cores, or one on a cluster with an address."""
    gpus: float = Field(0.0, ge=0, le=1024)
    """GPUs of a sampler; a fraction shares one."""
    engine: Literal["burnish", "vllm"] = "burnish"
    """What a sampler draws with."""
    python: str | None = None
    """The Python that runs the samplers, of an environment with burnish and vLLM; None is the driver's."""
    learner_gpus: float = Field(0.0, ge=0, le=1)
    """GPUs of a learner other than the driver; a fraction shares one."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """Processes on as few machines as possible, or on as many; the strict forms demand it."""
    colocate: bool = False
    """Whether each learner shares its place with a sampler, and the GPU if both need a part of one."""
    time_limit: float = Field(600.0, gt=0, le=1e6)
    """Seconds that a sampler or a learner may take for one answer, loading included."""
    restarts: int = Field(3, ge=0, le=1000)
    """How often the work of one step may be given to a new process after the last one ended, for each actor."""

    @model_validator(mode="after")
    def _check_keys(self) -> BackendSection:
        if self.use == "local":
            for key, field in type(self).model_fields.items():
                if key != "use" and getattr(self, key) != field.default:
                    raise ValueError(f'{key} belongs to use = "ray"; remove it, or set use')
        if self.address is not None and not self.address.strip():
            raise ValueError('address is empty; write "auto" or host:port, or remove it')
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus = {self.gpus}: Ray gives a part of one GPU or whole GPUs; use {int(self.gpus)}")
        if self.segment is not None and self.max_staleness < 2:
            raise ValueError(
                f"segment = {self.segment}: texts are drawn in parts only where samples of two later steps are begun; set "
                "max_staleness to 2 or more, or remove it"
            )
        if self.colocate and self.learners == 1:
            raise ValueError("colocate: the driver is the only learner, and Ray does not place it; remove it")
        both = self.gpus + self.learner_gpus
        if self.colocate and both > 1 and both != int(both):
            raise ValueError(
                f"colocate: a sampler's {self.gpus:g} and a learner's {self.learner_gpus:g} GPUs are more than one and no "
                "whole number; lower them to share one"
            )
        if self.python is not None and self.engine != "vllm":
            raise ValueError('python belongs to engine = "vllm", which may need an environment of its own; remove it')
        if self.engine == "vllm" and self.gpus > 1:
            raise ValueError(f'gpus = {self.gpus:g}: with engine = "vllm" a sampler uses one GPU; use at most 1')
        return self


def check_backend(backend: BackendSection, policy: Any, sampling: Any, algorithm: Any) -> None:
    """Check a backend against a recipe's policy, sampling and algorithm. Raises ValueError if they do not fit together."""
    if backend.use == "local":
        return
    if backend.shard:
        _check_shard(backend, policy, algorithm)
    if backend.samplers > sampling.prompts_per_step:
        raise ValueError(
            f"backend.samplers = {backend.samplers}: a step has only {sampling.prompts_per_step} prompts to share out; "
            "use fewer, or raise sampling.prompts_per_step"
        )
    if sampling.nlpo_top_p < 1:
        raise ValueError(
            'sampling.nlpo_top_p: not available with backend.use = "ray", since samplers do not get the lagged policy; '
            "remove it, or use sampling.top_p"
        )
    if policy.device == "cuda" and backend.gpus == 0:
        raise ValueError('backend.gpus = 0: policy.device = "cuda" needs a GPU for each sampler; set it, such as to 1')
    if policy.device == "cuda" and backend.learners > 1 and backend.learner_gpus == 0:
        raise ValueError(
            'backend.learner_gpus = 0: policy.device = "cuda" needs a GPU for each learner; set it, such as to 1'
        )
    if backend.segment is not None and policy.use == "tabular":
        raise ValueError(f"backend.segment = {backend.segment}: a table draws its texts at once; remove it")
    for key in ("gpus", "learner_gpus"):
        if policy.device == "cpu" and getattr(backend, key) > 0:
            raise ValueError(
                f'backend.{key} = {getattr(backend, key)}: policy.device = "cpu" uses none; remove one of the two'
            )


def _check_shard(backend: BackendSection, policy: Any, algorithm: Any) -> None:
    if backend.learners < 2:
        raise ValueError(
            f"backend.shard: there is nothing to split with learners = {backend.learners}; set learners = 2 or more, or "
            "remove shard"
        )
    if policy.use != "causal_lm":
        raise ValueError(f'backend.shard: splits language models, not policy.use = "{policy.use}"; remove it')
    if algorithm.critic is not None or algorithm.use == "ppo":
        raise ValueError("backend.shard: a critic is not split among learners yet; remove it, or use another algorithm")
    if algorithm.kl.reset_every is not None:
        raise ValueError(
            "algorithm.kl.reset_every: not available with backend.shard, whose weights are in parts; remove one of the two"
        )


def check_engine(backend: BackendSection, policy: Any, sampling: Any, held_out: Any) -> None:
    """Check that vLLM can sample for a recipe, if it is to. Raises ValueError if it cannot.

    Args:
        held_out: the recipe's evaluation.sampling.
    """
    if backend.engine != "vllm":
        return
    other = 'use backend.engine = "burnish"'
    if policy.use != "causal_lm":
        raise ValueError(
            f'backend.engine = "vllm" samples from language models, not policy.use = "{policy.use}"; {other}'
        )
    if policy.dtype == "float64":
        raise ValueError(f'policy.dtype = "float64": vLLM has no such numbers; use float32, or {other}')
    for key in ("dora", "modules_to_save", "target_parameters"):
        if policy.lora is not None and getattr(policy.lora, key):
            raise ValueError(f"policy.lora.{key}: not available with vLLM, which gets merged weights; {other}")
    for key, off in {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "min_new_tokens": 0}.items():
        # The KL to the reference compares full softmaxes.
        if getattr(sampling, key) != off:
            raise ValueError(
                f"sampling.{key} = {getattr(sampling, key):g}: not available in training with vLLM, which does not return "
                f"the probability that is cut off; remove it, or {other}"
            )
    if (held_out.min_p or 0) > 0 and (held_out.top_p or 1) < 1:
        raise ValueError(f"evaluation.sampling: vLLM applies min_p before top_p; remove one of the two, or {other}")


def corrects_by_default(backend: BackendSection) -> bool:
    """Return whether samples may be of other probabilities than the policy's: of older weights, or another program."""
    return backend.max_staleness > 0 or backend.engine == "vllm"
