"""Hugging Face causal language models as policies, fully trained or through LoRA adapters.

This module encodes text, computes log-probabilities, keeps the frozen reference, and saves weights. How completions are
arranged for a forward pass is in ``kernels.packing``; how models are loaded is in ``loading``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from burnish.errors import InputError
from burnish.policies.chat_template import chat_ids
from burnish.policies.kernels.attention import UnsupportedAttention
from burnish.policies.kernels.forward_cache import ForwardCache
from burnish.policies.kernels.fused_head import fused_logprobs
from burnish.policies.kernels.packing import (
    Layout,
    activation_bytes_per_token,
    choose_layout,
    device_memory_bytes,
    get_linear_head,
    packed_states,
    padded_logits,
    padded_states,
)
from burnish.policies.pretrained import ADAPTER_WEIGHTS, load_full_model, loading_errors, quiet_transformers
from burnish.policies.sampling_distribution import sampling_logprobs
from burnish.protocols import LanguageModel
from burnish.types import Completion, Prompt, SamplingParams, TokenStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CausalModel:
    """A causal language model with its tokenizer.

    Args:
        model: a transformers or peft model. It is put into evaluation mode: with dropout, the trained policy would
            differ from the sampled one.
        tokenizer: its tokenizer.
        batch: completions per forward pass without gradient.
        like: a model of the same architecture whose layout is taken over; without it, the layouts are compared.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch: int = 16,
        like: CausalModel | None = None,
    ) -> None:
        self.model = model.eval()  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        self.batch = batch
        self.reference: LanguageModel = self
        """Reference model for KL terms and fluency; the model itself unless replaced."""
        self.forward_cache: ForwardCache | None = None
        """Outputs of linear layers that the sampler stores for the training forward pass."""
        self.layout: Layout | None
        """Arrangement of completions for a forward pass; None if the logits need the model's own head."""
        self.padding_reason: str
        if like is None:
            self.layout, self.padding_reason = choose_layout(self.model)
        else:
            self.layout, self.padding_reason = like.layout, like.padding_reason

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.model.device)

    @property
    def max_positions(self) -> int | None:
        """Maximum number of tokens of a text, prompt and completion together; None if there is no limit."""
        config: Any = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions"):
            limit = getattr(config, name, None)
            if isinstance(limit, int) and limit > 0:
                return limit
        return None

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return frozenset(token for token in [*listed, self.tokenizer.eos_token_id] if token is not None)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt, with the beginning-of-text token if the model has one.

        A prompt with messages goes through the model's chat template, up to the start of the assistant's answer.

        Raises:
            InputError: the prompt is empty and the model has no token to begin with; or it has messages and the model
                has no chat template, or the template rejects them.
        """
        if prompt.messages:
            return chat_ids(self.tokenizer, prompt)
        ids = list(self.tokenizer(prompt.text)["input_ids"])
        while ids and ids[-1] in self.end_ids and ids[-1] != self.tokenizer.bos_token_id:
            ids.pop()
        if not ids:
            begins = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            ids = [token for token in begins if token is not None][:1]
            if not ids:
                raise InputError(f"prompt '{prompt.id}' is empty and the model has no token to begin a text with")
        return tuple(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @torch.no_grad()
    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Return log-probabilities [T], nats, under the full softmax; without gradient, on the CPU."""
        logprobs = []
        for start in range(0, len(completions), self.batch):
            part = completions[start : start + self.batch]
            logprobs.append(self._stats(part, SamplingParams(1, temperature)).logprobs)
        return torch.cat(logprobs) if logprobs else torch.zeros(0)

    def _stats(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return log-probabilities and entropies, [T] each, nats, at least float32, on the CPU.

        Raises:
            InputError: a prompt with its completion is longer than the model's positions.
        """
        longest = max(len(completion.prompt_ids) + len(completion.token_ids) for completion in completions)
        if self.max_positions is not None and longest > self.max_positions:
            raise InputError(
                f"a text of {longest} tokens does not fit into the model's {self.max_positions} positions: shorten it"
            )
        head = get_linear_head(self.model)
        if self.layout is None or head is None:
            return _stats_of_logits(
                *padded_logits(self.model, completions), sampling, entropy_gradient=entropy_gradient
            )
        try:
            states, tokens = self.layout(self.model, completions, self.forward_cache)
        except UnsupportedAttention:  # a text is longer than the attention window
            states, tokens = padded_states(self.model, completions)
        stats = fused_logprobs(states, *head, tokens, sampling, entropy_gradient=entropy_gradient)
        return TokenStats(*(tensor.cpu() for tensor in stats))


def _stats_of_logits(logits: Tensor, tokens: Tensor, sampling: SamplingParams, *, entropy_gradient: bool) -> TokenStats:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = sampling_logprobs(logits, sampling, always=tokens)
    chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        possible = logprobs.isfinite()
        entropy = -(logprobs.exp() * torch.where(possible, logprobs, 0.0)).sum(-1)
    return TokenStats(chosen.cpu(), entropy.cpu())


class _AdapterOff(CausalModel):
    """Reference of a LoRA policy: the same model with its adapter turned off, without a second copy."""

    @torch.no_grad()
    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        with self.model.disable_adapter():
            return super().token_logprobs(completions, temperature)


class ReloadedReference:
    """The policy before training, loaded from its files on first use; ``release`` frees its memory.

    Args:
        load: loads the model.
        like: the trained policy, which has the same tokenizer and layout.
    """

    def __init__(self, load: Callable[[], CausalModel], like: CausalModel) -> None:
        self._load, self._like = load, like
        self._loaded: CausalModel | None = None

    @property
    def loaded(self) -> CausalModel:
        if self._loaded is None:
            self._loaded = self._load()
            self._loaded.model.requires_grad_(False)
        return self._loaded

    def release(self) -> None:
        self._loaded = None

    def encode(self, text: str) -> tuple[int, ...]:
        return self._like.encode(text)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        return self._like.encode_prompt(prompt)

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Return log-probabilities [T], nats, under the full softmax; without gradient, on the CPU."""
        return self.loaded.token_logprobs(completions, temperature)


class CausalPolicy(CausalModel):
    """A causal language model that is trained.

    Args:
        model: a transformers model (all weights are trained) or a peft model (its adapter is trained).
        tokenizer: its tokenizer.
        base: name or folder of the base model.
        like: as in ``CausalModel``.
        start: loads the frozen reference of a policy without an adapter; without it, the reference is a copy.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        base: str = "",
        like: CausalModel | None = None,
        start: Callable[[], CausalModel] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, like=like)
        self.base = base
        self._own_cache: ForwardCache | None = None
        self.adapter = hasattr(model, "disable_adapter") and hasattr(model, "peft_config")
        if self.adapter:
            self.reference = _AdapterOff(model, tokenizer, like=self)
        elif start is not None:
            self.reference = ReloadedReference(start, self)
        else:
            self.reference = CausalModel(copy.deepcopy(model).requires_grad_(False), tokenizer, like=self)

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return log-probabilities with gradient and entropies, [T] each, nats, on the CPU."""
        return self._stats(completions, sampling, entropy_gradient=entropy_gradient)

    def start_forward_cache(self, memory_share: float = 1.0) -> None:
        """Store products of the sampling forward pass, for the training forward pass of the same tokens.

        Does nothing if the model cannot run packed, or if gradient checkpointing trades time for memory.

        Args:
            memory_share: the largest fraction of the device's memory that the cache may use.
        """
        if self.layout is not packed_states or any(
            getattr(m, "gradient_checkpointing", False) for m in self.model.modules()
        ):
            return
        max_bytes = int(device_memory_bytes(self.device) * memory_share)
        if self._own_cache is None or self._own_cache.max_bytes != max_bytes:
            self._own_cache = ForwardCache(max_bytes)
        self._own_cache.clear()
        self.forward_cache = self._own_cache

    def stop_forward_cache(self) -> None:
        """Stop storing and reusing outputs; the buffers stay allocated for the next step."""
        self.forward_cache = None

    @cached_property
    def max_microbatch_tokens(self) -> int:
        """Number of tokens whose activations fill a sixth of the device's memory.

        It depends on the size of the memory and not on what is free, so a run always uses the same microbatches.
        """
        return max(1, device_memory_bytes(self.device) // 6 // max(1, activation_bytes_per_token(self.model)))

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path) -> None:
        """Write the model, or the adapter with the name of its base, and the tokenizer in Hugging Face format."""
        with quiet_transformers():
            # Otherwise peft asks the hub whether the base model's embedding was resized; it never is.
            options = {"save_embedding_layers": False} if self.adapter else {}
            self.model.save_pretrained(folder, safe_serialization=True, **options)
            self.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Load saved weights in place, bit for bit.

        Raises:
            InputError: a weight is missing or has another shape, so the folder belongs to another model.
        """
        if self.adapter:
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            set_peft_model_state_dict(self.model, load_file(folder / ADAPTER_WEIGHTS))
            return
        if (folder / "adapter_config.json").exists():
            raise InputError(
                f"{folder} holds an adapter, and this policy has none: the folder belongs to another model"
            )
        # Load through transformers, which renames and regroups some weights (GPT-NeoX, experts) when it saves.
        with loading_errors(folder), quiet_transformers():
            saved = dict(load_full_model(folder, self.model.dtype, offline=True).named_parameters())
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            if name not in saved or saved[name].shape != parameter.shape:
                raise InputError(
                    f"{folder}: no weight '{name}' of shape {list(parameter.shape)}: the folder belongs to another model"
                )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
