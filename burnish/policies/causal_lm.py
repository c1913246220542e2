"""Hugging Face causal language models as policies, fully trained or through LoRA adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from burnish.catalogue.portable import make_portable
from burnish.errors import BurnishError, InputError
from burnish.policies.adapters import restore_adapter
from burnish.policies.chat_template import ChatSettings
from burnish.policies.kernels.forward_cache import ForwardCache
from burnish.policies.kernels.fused_head import fused_logprobs
from burnish.policies.kernels.layout_probe import LayoutChoice, choose_layout, max_text_tokens, name_limit
from burnish.policies.kernels.linear import PackedWeights, using_packed
from burnish.policies.kernels.mixed_precision import compute_dtype, enable_mixed_precision
from burnish.policies.kernels.packing import (
    Layout,
    activation_bytes_per_token,
    device_memory_bytes,
    get_linear_head,
    hidden_states,
    packed_states,
)
from burnish.policies.kernels.products import choose_libraries
from burnish.policies.model_text import ModelText
from burnish.policies.pretrained import load_full_model, loading_errors, quiet_transformers
from burnish.policies.reloaded_reference import ReloadedReference
from burnish.policies.sampling_distribution import early_ends, token_stats
from burnish.policies.token_rows import TokenRows, find_token_rows
from burnish.policies.verdicts import Verdicts
from burnish.protocols import LanguageModel
from burnish.system.machine import LEAST_MEMORY, LEAST_SHARE, memory, spare_bytes
from burnish.types import Completion, SamplingParams, TokenStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BATCH = 16
"""Completions per forward pass without gradient."""

MICROBATCH_PART, SMALL_MICROBATCH_PART = 6, 20
"""The activations of the largest microbatch fill a sixth of the device's memory, a twentieth if that is at most 8 GB."""

PACKED_PART = 4
"""Weights may be reordered, once for all microbatches, in this part of the memory to spare: a quarter."""

SCARCE = 1 / 16
"""Share of free memory below which the buffers for reused products are freed after each step."""


SharedStats = Callable[[Sequence[Completion], SamplingParams], TokenStats]
"""Computes the statistics of completions without gradient."""


class CausalModel(ModelText):
    """A causal language model with its tokenizer.

    Args:
        model: a transformers or peft model. It is put into evaluation mode: with dropout, the trained policy would
            differ from the sampled one.
        tokenizer: its tokenizer.
        like: a model of the same architecture whose layout is taken over; without it, the layouts are compared.
        chat: how conversations become text.
        verdicts: of the probes, where they are kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        like: CausalModel | None = None,
        chat: ChatSettings | None = None,
        verdicts: Verdicts | None = None,
    ) -> None:
        settings = like.chat.settings if chat is None and like is not None else chat
        super().__init__(model.eval(), tokenizer, settings)  # type: ignore[no-untyped-call]
        self.reference: LanguageModel = self
        """Reference model for KL terms and fluency; the model itself unless replaced."""
        self.forward_cache: ForwardCache | None = None
        """Outputs of linear layers that the sampler stores for the training forward pass."""
        self.verdicts: Verdicts | None = verdicts or (None if like is None else like.verdicts)
        self.choice: LayoutChoice = self._choose_layout() if like is None else like.choice
        self.layout: Layout | None = self.choice.layout
        """Arrangement of completions for a forward pass; None if the logits need the model's own head."""
        self.padding_reason = self.choice.reason
        self.sampler_kind: str = "" if like is None else like.sampler_kind
        """Name of the sampler that is exact for the model; "" before samplers were compared."""
        self.sampler_reason: str = "" if like is None else like.sampler_reason
        """Why it is not the fastest sampler."""
        self.token_rows: TokenRows | None = find_token_rows(model, tokenizer) if like is None else like.token_rows
        """Rows of the head that belong to a token; None if all do."""
        self.shared_stats: SharedStats | None = None
        """Computes what ``own_stats`` does without gradient, where other processes have parts of the weights."""

    def _choose_layout(self) -> LayoutChoice:
        if self.verdicts is not None and (known := self.verdicts.layout()):
            return known
        choice = choose_layout(self.model)
        if self.verdicts is not None:
            self.verdicts.keep_layout(choice)
        return choice

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.model.device)

    @property
    def max_positions(self) -> int | None:
        """Maximum number of tokens of a text, prompt and completion together; None if there is no limit."""
        return max_text_tokens(self.model.config.get_text_config())

    def token_logits(self, logits: Tensor) -> Tensor:
        """Return the head's logits [..., V] in at least float32, without those that belong to no token."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.token_rows is None else self.token_rows.select(logits)

    @torch.no_grad()
    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Return log-probabilities [T], nats, under the full softmax; without gradient, on the CPU."""
        room = spare_bytes(device_memory_bytes(self.device)) // PACKED_PART
        packed = PackedWeights(room) if len(completions) > BATCH and self.shared_stats is None else None
        with using_packed(packed):
            logprobs = [
                self._stats(completions[start : start + BATCH], SamplingParams(1, temperature)).logprobs
                for start in range(0, len(completions), BATCH)
            ]
        return torch.cat(logprobs) if logprobs else torch.zeros(0)

    def _stats(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        if self.shared_stats is not None:
            return self.shared_stats(completions, sampling)
        return self.own_stats(completions, sampling, entropy_gradient)

    def own_stats(
        self, completions: Sequence[Completion], sampling: SamplingParams, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return log-probabilities and entropies, [T] each, nats, at least float32, on the CPU.

        Raises:
            InputError: a prompt with its completion is longer than the model's positions.
        """
        longest = max(len(completion.prompt_ids) + len(completion.token_ids) for completion in completions)
        if self.max_positions is not None and longest > self.max_positions:
            raise InputError(
                f"a text of {longest} tokens does not fit into the model's {self.max_positions} positions"
                f"{name_limit(self.model.config.get_text_config())}: shorten it"
            )
        head = get_linear_head(self.model)
        early = early_ends(
            [range(len(completion.token_ids)) for completion in completions], self.stop_ids(sampling), sampling,
            self.device,
        )  # fmt: skip
        if self.layout is None or head is None:
            logits, tokens = self.choice.logits(self.model, completions)
            logits = self.token_logits(logits)
            return token_stats(logits, tokens, sampling, early=early, entropy_gradient=entropy_gradient)
        states, tokens = hidden_states(self.layout, self.model, completions, self.forward_cache)
        return fused_logprobs(
            states, *head, tokens, sampling, token_rows=self.token_rows, early=early, entropy_gradient=entropy_gradient
        )


class _AdapterOff(CausalModel):
    """Reference of a LoRA policy: the same model with its adapter turned off, without a second copy."""

    @torch.no_grad()
    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        with self.model.disable_adapter() if self.shared_stats is None else nullcontext():
            return super().token_logprobs(completions, temperature)


class CausalPolicy(CausalModel):
    """A causal language model that is trained.

    Args:
        model: a transformers model (all weights are trained) or a peft model (its adapter is trained).
        tokenizer, like: as in ``CausalModel``.
        base: name or folder of the base model.
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
        if any(one.requires_grad and one.dtype == torch.bfloat16 for one in model.parameters()):
            enable_mixed_precision(model, torch.bfloat16)
        super().__init__(model, tokenizer, like=like)
        self.base = base
        self.frozen_base: Any = None
        """What keeps the weights that an adapter shares with others on the same base."""
        self.save_dtype: torch.dtype | None = None
        """Type of the saved weights; None is that of the model."""
        self._own_cache: ForwardCache | None = None
        self._packed: PackedWeights | None = None
        """Weights reordered for a step's gradient."""
        self._adapter_off: _AdapterOff | None = None
        self.adapter = hasattr(model, "disable_adapter") and hasattr(model, "peft_config")
        if self.adapter:
            self.reference = self._adapter_off = _AdapterOff(model, tokenizer, like=self)
        elif start is not None:
            self.reference = ReloadedReference(start, self)
        else:
            self.reference = CausalModel(copy.deepcopy(model).requires_grad_(False), tokenizer, like=self)

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return log-probabilities with gradient and entropies, [T] each, nats, on the CPU."""
        with using_packed(None if self.forward_cache is None else self._packed):
            return self._stats(completions, sampling, entropy_gradient=entropy_gradient)

    def share_forward(self, compute: Callable[[Sequence[Completion], SamplingParams, bool], TokenStats]) -> None:
        """Leave every forward pass without gradient to a function, whose last argument is whether the adapter is on."""
        self.shared_stats = partial(compute, adapter=True)  # type: ignore[call-arg]
        if self._adapter_off is not None:
            self._adapter_off.shared_stats = partial(compute, adapter=False)  # type: ignore[call-arg]

    def replace_model(self, model: PreTrainedModel) -> None:
        """Go on with another model of the same architecture."""
        self.model = model
        if self._adapter_off is not None:
            self._adapter_off.model = model

    def choose_products(self) -> None:
        """Choose the faster library for the products of training, which only packed layouts of CPUs leave open."""
        if self.layout is packed_states and self.device.type == "cpu" and compute_dtype(self.model) is None:
            weights = [one for one in self.model.parameters() if one.dim() == 2 and one.dtype == torch.float32]
            choose_libraries((one.shape[0], one.shape[1]) for one in weights)

    def start_forward_cache(self, memory_share: float = 1.0) -> None:
        """Store products of the sampling forward pass, for the training forward pass of the same tokens.

        Does nothing if the model cannot run packed, if gradient checkpointing trades time for memory, or with mixed
        precision. The cache, and weights reordered for the gradient, use at most ``memory_share`` of the device's memory,
        and half of what training leaves.
        """
        checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        if self.layout is not packed_states or checkpointed or compute_dtype(self.model) is not None:
            return
        total = device_memory_bytes(self.device)
        room = int(min(total * memory_share, max(total * LEAST_SHARE, (total - self._training_bytes) / 2)))
        max_bytes = room - room // PACKED_PART
        if self._own_cache is None or self._own_cache.max_bytes != max_bytes:
            self._own_cache = ForwardCache(max_bytes)
        self._own_cache.clear()
        self.forward_cache, self._packed = self._own_cache, PackedWeights(room // PACKED_PART)

    def stop_forward_cache(self) -> None:
        """Stop storing and reusing outputs; the buffers stay allocated for the next step unless memory is scarce."""
        self.forward_cache = self._packed = None
        sizes = memory() if self._own_cache is not None else None
        if self._own_cache is not None and sizes is not None and sizes[1] < sizes[0] * SCARCE:
            self._own_cache.release()

    @property
    def _training_bytes(self) -> int:
        """Bytes of the weights, those of a reference, gradients, moments, and the largest microbatch."""
        weights, trained = (
            sum(one.nbytes for one in some) for some in (self.model.parameters(), self.trainable().values())
        )
        return 2 * weights + 3 * trained + self._microbatch_bytes

    @property
    def _microbatch_bytes(self) -> int:
        total = device_memory_bytes(self.device)
        return total // (MICROBATCH_PART if total > LEAST_MEMORY else SMALL_MICROBATCH_PART)

    @cached_property
    def max_microbatch_tokens(self) -> int:
        """Number of tokens whose activations fill the part of the device's memory that microbatches may use.

        It depends on the size of the memory and not on what is free, so a run always uses the same microbatches.
        """
        each = activation_bytes_per_token(self.model, packed=self.layout is packed_states)
        return max(1, self._microbatch_bytes // max(1, each))

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path, trained: Mapping[str, Tensor] | None = None) -> None:
        """Write the model, or the adapter with the name of its base, and the tokenizer, as other programs read them.

        ``trained`` are the trainable weights by name, where the model has not all of their rows.
        """
        with quiet_transformers():
            # Otherwise peft asks the hub whether the base model's embedding was resized; it never is.
            options: dict[str, Any] = {"save_embedding_layers": False} if self.adapter else {}
            weights = self.model.state_dict() if trained is None else self._with_trained(trained)
            if not self.adapter and self.save_dtype not in (None, self.model.dtype):
                options["state_dict"] = self._converted_weights(weights)
            elif trained is not None:
                options["state_dict"] = weights
            self.model.save_pretrained(folder, safe_serialization=True, **options)
            self.tokenizer.save_pretrained(folder)
        dtype = None if self.save_dtype is None else str(self.save_dtype).removeprefix("torch.")
        make_portable(folder, dtype=dtype, end_ids=self.end_ids)

    def _with_trained(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return these trainable weights under all of their names, and the model's buffers."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        shared = self.model.named_parameters(remove_duplicate=False)
        weights = {name: trained[names[one]] for name, one in shared if names[one] in trained}
        others = {name: one for name, one in self.model.state_dict().items() if name not in weights}
        return weights if self.adapter else {**others, **weights}

    def _converted_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights in the type that is saved; tied weights stay one tensor."""
        weights: dict[str, Tensor] = {}
        converted: dict[int, Tensor] = {}
        # transformers reads these in float32, whatever the type of the others.
        wide = getattr(self.model, "_keep_in_fp32_modules_strict", None) or ()
        for name, tensor in state.items():
            if not tensor.is_floating_point() or set(name.split(".")) & set(wide):
                weights[name] = tensor
                continue
            weights[name] = converted.setdefault(tensor.data_ptr(), tensor.to(self.save_dtype))
            if not torch.isfinite(weights[name]).all():
                raise BurnishError(
                    f"weight '{name}' does not fit into {self.save_dtype}: set policy.save_dtype = \"float32\""
                )
        return weights

    @property
    def saves_rounded(self) -> bool:
        """Whether ``save`` drops bits of the weights, which a checkpoint then keeps beside the model."""
        return self.save_dtype is not None and torch.promote_types(self.save_dtype, self.model.dtype) != self.save_dtype

    def load(self, folder: Path) -> None:
        """Load saved weights in place, bit for bit.

        Raises:
            InputError: a weight is missing or has another shape, so the folder belongs to another model.
        """
        if self.adapter:
            with loading_errors(folder):
                restore_adapter(self.model, folder)
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
                    f"{folder}: no weight '{name}' of shape {list(parameter.shape)}: "
                    "the folder belongs to another model"
                )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
