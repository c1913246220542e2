"""Any Hugging Face causal language model as a policy, whole or through LoRA adapters.

How completions are laid out for a forward pass is the business of ``layout``; here are encoding, log-probabilities, the
frozen reference, and loading and saving.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from burnish.errors import InputError
from burnish.generation.sampling import sampling_logprobs
from burnish.policies.attention import Unsupported
from burnish.policies.chat import chat_ids
from burnish.policies.checkpointing import enable_checkpointing
from burnish.policies.head import fused_logprobs
from burnish.policies.layout import (
    Layout,
    activation_bytes,
    fitting_layout,
    head,
    memory_bytes,
    packed,
    plain,
    plain_logits,
)
from burnish.policies.recorded import Recorded
from burnish.protocols import LanguageModel
from burnish.types import Completion, Prompt, SamplingParams, TokenStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


RECORDED_SHARE = 8
"""One part in so many of the memory is for what sampling has computed and training needs again."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"


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
        self.recorded: Recorded | None = None
        """Where a sampler leaves what it computed of the policy's own samples."""
        self.layout: Layout | None
        """How completions are laid out; None where the model's own head must make the logits."""
        self.plain_because: str
        if like is None:
            self.layout, self.plain_because = fitting_layout(self.model)
        else:
            self.layout, self.plain_because = like.layout, like.plain_because

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
        product = head(self.model)
        if self.layout is None or product is None:
            return _stats_of_logits(*plain_logits(self.model, completions), sampling, entropy_gradient=entropy_gradient)
        try:
            states, tokens = self.layout(self.model, completions, self.recorded)
        except Unsupported:  # texts longer than the window that its attention sees
            states, tokens = plain(self.model, completions)
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


class FrozenStart:
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


class CausalLM(CausalModel):
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
        self._record: Recorded | None = None
        self.adapter = hasattr(model, "disable_adapter") and hasattr(model, "peft_config")
        if self.adapter:
            self.reference = _AdapterOff(model, tokenizer, like=self)
        elif start is not None:
            self.reference = FrozenStart(start, self)
        else:
            self.reference = CausalModel(copy.deepcopy(model).requires_grad_(False), tokenizer, like=self)

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Log-probabilities [T] with gradient and entropies [T], nats, on the CPU."""
        return self._stats(completions, sampling, entropy_gradient=entropy_gradient)

    def record(self) -> None:
        """What is sampled from now on leaves its products, in an eighth of the memory at most, for the gradient of the same
        tokens; where the layers are to run again in the backward pass, memory is what is short, and nothing is kept."""
        if self.layout is not packed or any(getattr(m, "gradient_checkpointing", False) for m in self.model.modules()):
            return
        if self._record is None:
            self._record = Recorded(memory_bytes(self.device) // RECORDED_SHARE)
        self._record.clear()
        self.recorded = self._record

    def forget(self) -> None:
        """Ends that; its memory is kept for the next step."""
        self.recorded = None

    @cached_property
    def fitting_tokens(self) -> int:
        """Tokens whose activations take a sixth of the memory; its size is asked for, not what is free of it just now, so
        that a run is cut into the same microbatches each time."""
        return max(1, memory_bytes(self.device) // 6 // max(1, activation_bytes(self.model)))

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path) -> None:
        """Hugging Face form: a whole model, or the adapter with the name of its base; the tokenizer beside either."""
        with _quiet():
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
        with _loading(folder), _quiet():
            saved = dict(_whole_model(folder, self.model.dtype, offline=True).named_parameters())
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            if name not in saved or saved[name].shape != parameter.shape:
                raise InputError(
                    f"{folder}: no weight '{name}' of shape {list(parameter.shape)}: another model's folder"
                )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    offline: bool = False,
    like: CausalModel | None = None,
) -> CausalModel:
    """Loads a model and its tokenizer from a local folder or a hub id, from safetensors only.

    A folder that holds a LoRA adapter loads its base, which may be such a folder too, and merges the adapter into it.

    Raises:
        InputError: it cannot be loaded; the message says what is missing.
    """
    from transformers import AutoTokenizer

    with _loading(source), _quiet():
        model = _merged_model(source, getattr(torch, dtype), offline=offline)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    moved: PreTrainedModel = model.to(place)
    return CausalModel(moved, tokenizer, like=like)


def _merged_model(source: str | Path, dtype: torch.dtype, *, offline: bool) -> Any:
    """A whole model; where the source is an adapter, its base with the adapter merged into it.

    The adapter is found here and not by transformers, which would take up one beside a base without a word, and would
    take a pickled one.
    """
    from transformers.utils.hub import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    described = find_adapter_config_file(str(source), local_files_only=offline)
    if described is None:
        return _whole_model(source, dtype, offline=offline)
    weights = Path(str(cached_file(str(source), ADAPTER_WEIGHTS, local_files_only=offline)))
    base = json.loads(Path(described).read_text(encoding="utf-8"))["base_model_name_or_path"]
    if base == str(source):
        raise ValueError("its adapter_config.json names itself as the base model")
    from peft import PeftModel

    # In the folder where adapter_model.safetensors lies, peft reads that and no other file.
    return PeftModel.from_pretrained(_merged_model(base, dtype, offline=offline), weights.parent).merge_and_unload()


def _whole_model(source: str | Path, dtype: torch.dtype, *, offline: bool) -> Any:
    """A transformers model with all of its weights. Raises ValueError where its files lack some."""
    from transformers import AutoModelForCausalLM

    auto_model: Any = AutoModelForCausalLM  # its class methods carry no types
    model, loading = auto_model.from_pretrained(
        source,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=offline,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):
        # transformers would fill them with random numbers and go on.
        raise ValueError(f"its files lack {len(missing)} weights, the first is {missing[0]}: copy or download it again")
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped kernels of mixtures of experts take no float64
    return model


def load_policy(
    source: str | Path,
    *,
    lora: Any = None,
    dtype: str = "float32",
    device: str = "auto",
    offline: bool = False,
    seed: int = 0,
    gradient_checkpointing: bool = False,
) -> CausalLM:
    """A policy to train, from a local folder or a hub id.

    Args:
        lora: a record with rank, alpha and targets; None trains all weights.
        seed: of the adapter's first weights.
        gradient_checkpointing: whether layers run again in the backward pass instead of keeping what they computed.

    Raises:
        InputError: as ``load_model``, or the layers cannot be run again.
    """
    # A run's "model" is a link that moves on while that run does; what it leads to now is what training starts from.
    source = Path(source).resolve() if Path(source).is_dir() else source
    loaded = load_model(source, dtype=dtype, device=device, offline=offline)
    if lora is None:
        trained = loaded.model.requires_grad_(True)

        def start() -> CausalModel:
            return load_model(source, dtype=dtype, device=device, offline=True, like=loaded)

        policy = CausalLM(trained, loaded.tokenizer, base=str(source), like=loaded, start=start)
    else:
        policy = CausalLM(
            _adapted(loaded.model, lora, source, seed), loaded.tokenizer, base=str(source), like=loaded
        )  # fmt: skip
    if gradient_checkpointing:
        enable_checkpointing(policy.model)
    return policy


def _adapted(model: PreTrainedModel, lora: Any, source: str | Path, seed: int) -> Any:
    """The model with an adapter that is still without effect."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank, lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha, lora_dropout=0.0,
        target_modules=lora.targets, task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(model, config)
        # Not what the model was loaded from at last: where the source is an adapter itself, that is the adapter's base.
        adapted.peft_config["default"].base_model_name_or_path = str(source)
    return adapted


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars and advice, and without what the libraries deprecate of each other."""
    import warnings

    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it itself where GPT-2 needs it
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _loading(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"model '{source}' cannot be loaded: {reason[:300]}") from error
