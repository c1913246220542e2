"""Sampling by vLLM, on weights that are copied into it, with the log-probabilities of the sampling distribution.

vLLM gets token ids and returns token ids: prompts, chat templates, end tokens and stop texts are burnish's own, so they
mean the same for every sampler.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from burnish.errors import BurnishError, InputError, one_line
from burnish.generation.rows import Drawer, RowSampler, SampleRow
from burnish.generation.sampler_probe import TOLERANCE, largest_gap
from burnish.policies.causal_lm import CausalModel
from burnish.policies.kernels.mixed_precision import compute_dtype, sampling_dtype
from burnish.policies.kernels.packing import unwrap_peft
from burnish.policies.token_rows import count_rows
from burnish.system.optional_packages import needed
from burnish.types import SamplingParams

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process the order of requests is always the same
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several samplers would bind to the same cores
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Of a process before it imports vLLM."""
CPU_ROWS, CPU_CACHE = 64, 1 << 30
"""On a CPU: samples in flight, and bytes of keys and values."""
GPU_SHARE = 0.9
"""Part of a GPU's memory that vLLM may fill, if the sampler has the GPU to itself."""
GAP_TOKENS = 12
"""Tokens per sample of the comparison with the policy."""
FORBIDDEN = -100.0
"""Added to the logits of rows without a token; vLLM takes no less."""


class VLLMSampler(RowSampler):
    """Sampler that draws with vLLM, which has a copy of the weights: ``copy_weights`` brings it to those of the policy.

    Args:
        language_model: the policy, whose weights are copied.
        gpus: the sampler's share of a GPU; 0 on a CPU.

    Raises:
        InputError: vLLM is not installed, cannot run the model, or gives other log-probabilities than the policy.
    """

    def __init__(self, language_model: CausalModel, *, gpus: float = 0.0) -> None:
        super().__init__(language_model)
        self.language_model = language_model
        os.environ.update(ENVIRONMENT)
        self._vllm = needed("vllm", "vllm", 'backend.engine = "vllm"')
        model = language_model.model
        self._dtype = (compute_dtype(model) or model.dtype) if torch.cuda.is_available() else sampling_dtype(model)
        rows = language_model.token_rows
        self._bias: dict[int, float] | None = None
        if rows is not None:
            beyond = range(rows.count, count_rows(language_model.model))
            self._bias = dict.fromkeys((*rows.holes.tolist(), *beyond), FORBIDDEN)
        try:
            self._engine = self._start(gpus)
            self._limit = int(self._engine.llm_engine.model_config.max_model_len)
            self.copy_weights()
            self._compare()
        except BurnishError:
            raise
        except Exception as error:  # vLLM refuses a model in any way, and some only when it computes
            raise InputError(
                f"vLLM cannot run this {self._kind()} model ({type(error).__name__}: {one_line(error)[:300]}): "
                'use backend.engine = "burnish"'
            ) from error

    def _start(self, gpus: float) -> Any:
        """Start vLLM with the model's architecture and no weights: those of the policy come before the first token."""
        model = unwrap_peft(self.language_model.model)
        on_cpu = not torch.cuda.is_available()
        sizes: dict[str, Any] = {"gpu_memory_utilization": GPU_SHARE * min(1.0, gpus or 1.0)}
        if on_cpu:
            sizes = {"kv_cache_memory_bytes": CPU_CACHE, "max_num_seqs": CPU_ROWS, "enforce_eager": True}
        with tempfile.TemporaryDirectory() as folder, _without_llvmlite():
            model.config.save_pretrained(folder)
            return self._vllm.LLM(
                model=folder, skip_tokenizer_init=True, load_format="dummy", generation_config="vllm",
                dtype=str(self._dtype).removeprefix("torch."), max_model_len=-1, seed=0,
                enable_prefix_caching=True, logprobs_mode="processed_logprobs", disable_log_stats=True, **sizes,
            )  # fmt: skip

    def copy_weights(self) -> None:
        """Copy the policy's weights into vLLM, in place, and forget what it has cached."""
        self._engine.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": checkpoint_weights(self.language_model.model)}
        )
        if not self._engine.reset_prefix_cache():
            raise BurnishError("vLLM did not forget the keys and values of earlier weights")

    def _compare(self) -> None:
        gap, limit = largest_gap(self.language_model, self, GAP_TOKENS), TOLERANCE.get(self._dtype, 0.5)
        if not gap <= limit:
            raise InputError(
                f"vLLM gives this {self._kind()} model other log-probabilities than transformers "
                f'(by {gap:.1e} nats, allowed are {limit:g}): use backend.engine = "burnish"'
            )

    def _kind(self) -> str:
        return str(unwrap_peft(self.language_model.model).config.model_type)

    def fill(self, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow], sampling: SamplingParams) -> None:
        longest = max(map(len, encoded)) + sampling.max_new_tokens
        if longest > self._limit:
            raise InputError(
                f"a text may have {longest} tokens, and the keys and values of vLLM's sampler hold {self._limit}: lower "
                "sampling.max_new_tokens or give shorter prompts"
            )
        drawer = Drawer(self.language_model, sampling)
        prompts = [{"prompt_token_ids": list(encoded[row.prompt])} for row in rows]
        params = [self._params(row, sampling, drawer.ends) for row in rows]
        for row, answer in zip(rows, self._engine.generate(prompts, params, use_tqdm=False), strict=True):
            (output,) = answer.outputs
            for token, logprobs in zip(output.token_ids, output.logprobs, strict=True):
                drawer.accept(row, token, logprobs[token].logprob)
                if row.reason == "stop":
                    break

    def _params(self, row: SampleRow, sampling: SamplingParams, ends: frozenset[int]) -> Any:
        """Return what vLLM needs to know of a row. Its seed is the next of the row's own random numbers."""
        return self._vllm.SamplingParams(
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens, min_tokens=max(0, sampling.min_new_tokens - row.before),
            stop_token_ids=sorted(ends), ignore_eos=True, logprobs=0, logit_bias=self._bias, detokenize=False,
            seed=int(row.uniforms[row.before] * 2**53),
        )  # fmt: skip


@contextmanager
def _without_llvmlite() -> Iterator[None]:
    """Hide llvmlite's table of functions from vLLM 0.32, which asks all that modules hold for a table of attributes.

    This one answers with a function (findings/vllm_reads_every_module.sh).
    """
    module = sys.modules.pop("llvmlite.binding.ffi", None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules["llvmlite.binding.ffi"] = module


@torch.no_grad()
def checkpoint_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a transformers or peft model by the names of its checkpoint, adapters merged, in their type.

    Raises InputError for an adapter that is not a product beside a linear layer.
    """
    from peft.tuners.lora import Linear, LoraLayer

    trained = unwrap_peft(model)
    merged: dict[str, Tensor] = {}
    for name, module in trained.named_modules():
        if isinstance(module, Linear):
            weight: Tensor = module.get_base_layer().weight  # type: ignore[assignment]
            for adapter in module.active_adapters:
                weight = weight + module.get_delta_weight(adapter)
            merged[f"{name}.weight"] = weight
        elif isinstance(module, LoraLayer):
            raise InputError(
                f"policy.lora: vLLM cannot get the adapter of '{name}', which is not a linear layer: name others in "
                'policy.lora.targets, or use backend.engine = "burnish"'
            )
    for name, tensor in trained.state_dict().items():
        name = name.replace(".base_layer.", ".")
        if ".lora_" not in name:
            yield name, merged.get(name, tensor)
