"""Any Hugging Face causal language model as a policy, whole or through LoRA adapters.

How completions are laid out for a forward pass is the business of ``layout``; here are encoding, log-probabilities, the
frozen reference, and saving. How one comes from files: ``loading``.
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
    """A causal language model with its tokenizer: encodes, decodes, and says how probable a completion is.

    Args:
        model: in evaluation mode; dropout would make training another policy than the one that was sampled.
        batch: completions in one forward pass where no gradient is wanted.
        like: a language model of the same architecture, whose layout is taken over; without it, the model is probed.
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
        """What the model's texts are judged by; itself, until somebody says otherwise."""
        self.recorded: ForwardCache | None = None
        """Where a sampler leaves what it computed of the policy's own samples."""
        self.layout: Layout | None
        """How completions are laid out; None where the model's own head must make the logits."""
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
        """Tokens that fit into one text, prompt and completion together; None where the model sets no bound."""
        config: Any = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions"):
            found = getattr(config, name, None)
            if isinstance(found, int) and found > 0:
                return found
        return None

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return frozenset(token for token in [*listed, self.tokenizer.eos_token_id] if token is not None)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text with no special tokens around it."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt, with the beginning-of-text token where the model has one.

        A prompt with messages goes through the model's chat template, up to where the assistant's answer begins.

        Raises:
            InputError: the prompt is empty and the model has no token to begin with, or it has messages and the model
                has no chat template, or one that refuses them.
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
        """[T], nats, under the whole softmax; on the CPU."""
        found = []
        for start in range(0, len(completions), self.batch):
            part = completions[start : start + self.batch]
            found.append(self._stats(part, SamplingParams(1, temperature)).logprobs)
        return torch.cat(found) if found else torch.zeros(0)

    def _stats(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Log-probabilities and entropies [T], nats, at least float32, on the CPU.

        Raises:
            InputError: a prompt with its completion is longer than the model's positions.
        """
        longest = max(len(completion.prompt_ids) + len(completion.token_ids) for completion in completions)
        if self.max_positions is not None and longest > self.max_positions:
            raise InputError(
                f"a text of {longest} tokens does not fit into the model's {self.max_positions} positions: shorten it"
            )
        product = get_linear_head(self.model)
        if self.layout is None or product is None:
            return _stats_of_logits(
                *padded_logits(self.model, completions), sampling, entropy_gradient=entropy_gradient
            )
        try:
            states, tokens = self.layout(self.model, completions, self.recorded)
        except UnsupportedAttention:  # texts longer than the window that its attention sees
            states, tokens = padded_states(self.model, completions)
        found = fused_logprobs(states, *product, tokens, sampling, entropy_gradient=entropy_gradient)
        return TokenStats(*(tensor.cpu() for tensor in found))


def _stats_of_logits(logits: Tensor, tokens: Tensor, sampling: SamplingParams, *, entropy_gradient: bool) -> TokenStats:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = sampling_logprobs(logits, sampling, always=tokens)
    chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        possible = logprobs.isfinite()
        entropy = -(logprobs.exp() * torch.where(possible, logprobs, 0.0)).sum(-1)
    return TokenStats(chosen.cpu(), entropy.cpu())


class _AdapterOff(CausalModel):
    """The reference of a LoRA policy: its own base with the adapter switched off, no second copy."""

    @torch.no_grad()
    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        with self.model.disable_adapter():
            return super().token_logprobs(completions, temperature)


class ReloadedReference:
    """The policy that training started from, read again from its files when it is asked, and let go of when told: while
    nobody asks, it takes no memory.

    Args:
        load: reads it.
        like: the trained policy, whose tokenizer and layout are the same.
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
        """As of ``CausalModel``."""
        return self.loaded.token_logprobs(completions, temperature)


class CausalPolicy(CausalModel):
    """The trained policy.

    Args:
        model: a plain transformers model (all of it is trained) or a peft model (its adapter is).
        base: where the model came from, written beside a saved adapter.
        like: as in ``CausalModel``.
        start: reads the frozen reference of a policy without an adapter; without it, the reference is a copy.
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
        self._record: ForwardCache | None = None
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
        """Log-probabilities [T] with gradient and entropies [T], nats, on the CPU."""
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
        room = int(device_memory_bytes(self.device) * memory_share)
        if self._record is None or self._record.room != room:
            self._record = ForwardCache(room)
        self._record.clear()
        self.recorded = self._record

    def stop_forward_cache(self) -> None:
        """Ends that; its memory is kept for the next step."""
        self.recorded = None

    @cached_property
    def max_microbatch_tokens(self) -> int:
        """Tokens whose activations take a sixth of the memory; its size is asked for, not what is free of it just now, so
        that a run is cut into the same microbatches each time."""
        return max(1, device_memory_bytes(self.device) // 6 // max(1, activation_bytes_per_token(self.model)))

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path) -> None:
        """Hugging Face form: a whole model, or the adapter with the name of its base; the tokenizer beside either."""
        with quiet_transformers():
            # peft would look on the hub whether the base's embedding has grown; it never does.
            options = {"save_embedding_layers": False} if self.adapter else {}
            self.model.save_pretrained(folder, safe_serialization=True, **options)
            self.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Takes over saved weights in place, bit for bit.

        Raises:
            InputError: a weight is missing or of another shape, so these weights belong to another model.
        """
        if self.adapter:
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            set_peft_model_state_dict(self.model, load_file(folder / ADAPTER_WEIGHTS))
            return
        if (folder / "adapter_config.json").exists():
            raise InputError(f"{folder} holds an adapter, and this policy has none: another model's folder")
        # Not the file's own names: transformers renames and regroups some weights (GPT-NeoX, experts) when it saves.
        with loading_errors(folder), quiet_transformers():
            saved = dict(load_full_model(folder, self.model.dtype, offline=True).named_parameters())
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            if name not in saved or saved[name].shape != parameter.shape:
                raise InputError(
                    f"{folder}: no weight '{name}' of shape {list(parameter.shape)}: another model's folder"
                )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
