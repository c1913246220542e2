"""Policies from any torch module that maps token ids [B, T] to scores [B, T, V].

A module with a state may offer ``advance(tokens [B, T], state) -> (scores [B, T, V], state)``. A state is a tuple of
tensors whose first dimension is the batch; None is the state before the first token. Each distinct prompt is then read
once, and sampling reads one token per step. Other modules read the whole text every time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from burnish.errors import InputError, one_line
from burnish.policies.kernels.packing import device_memory_bytes, pad_token_ids
from burnish.policies.module_contract import check_module
from burnish.policies.sampling_distribution import check_token_ids, early_ends, token_stats
from burnish.policies.vocabulary import FILE, Vocabulary, read_vocabulary, refuse_messages, write_vocabulary
from burnish.protocols import LanguageModel
from burnish.types import Completion, Prompt, SamplingParams, TokenStats

ScoreKind = Literal["logits", "probabilities", "logprobs"]
State = tuple[Tensor, ...]
WEIGHTS = "model.safetensors"
LAGGED = "lagged.safetensors"
BATCH = 64
"""Completions per forward pass without gradient."""


def as_logits(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Return scores [..., V] as logits up to a constant per row: the log of probabilities, other scores unchanged.

    A probability that has underflowed to 0 counts as the smallest positive number, whose gradient is 0 and not 0 / 0.
    """
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log() if kind == "probabilities" else scores


class ModuleModel:
    """A module with its vocabulary.

    Args:
        module: put into evaluation mode: with dropout, the trained policy would differ from the sampled one. An
            attribute ``max_positions`` limits the length of a text.
        vocabulary: has as many tokens as the module has scores.
        scores: what the module returns: "logits", "probabilities" or "logprobs".
        name: name of the module in messages.
        check: whether to check the module on a few tokens first (``module_contract``).

    Raises:
        InputError: the module violates the contract; the message says how.
    """

    def __init__(
        self,
        module: nn.Module,
        vocabulary: Vocabulary,
        *,
        scores: ScoreKind,
        name: str = "",
        check: bool = True,
    ) -> None:
        self.module = module.eval()
        self.vocabulary = vocabulary
        self.scores: ScoreKind = scores
        self.reference: LanguageModel = self
        """Reference model for KL terms and fluency; the model itself unless replaced."""
        self.lagged: ModuleModel | None = None
        """Earlier copy that masks the sampled tokens (NLPO); see ``update_lagged_policy``."""
        self.advances = callable(getattr(module, "advance", None))
        if check:
            check_module(module, vocabulary.size, scores, name or type(module).__name__, self.device)

    @property
    def device(self) -> torch.device:
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def max_positions(self) -> int | None:
        """Maximum number of tokens of a text, prompt and completion together; None if there is no limit."""
        limit = getattr(self.module, "max_positions", None)
        return limit if isinstance(limit, int) else None

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text, without special tokens."""
        return self.vocabulary.encode(text)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt, after the vocabulary's begin token if it has one.

        Raises:
            InputError: a character has no token; the prompt is empty and there is no begin token; or it is a
                conversation, which needs a chat template.
        """
        refuse_messages(prompt)
        begin = () if self.vocabulary.begin is None else (self.vocabulary.begin,)
        try:
            ids = (*begin, *self.vocabulary.encode(prompt.text))
        except InputError as error:
            raise InputError(f"prompt '{prompt.id}': {error}") from error
        if not ids:
            raise InputError(f"prompt '{prompt.id}' is empty and the vocabulary has no token to begin a text with")
        return ids

    def decode(self, token_ids: Sequence[int], *, begins: bool = False) -> str:
        return self.vocabulary.decode(token_ids)

    def stop_ids(self, sampling: SamplingParams) -> frozenset[int]:
        """Return the tokens that end a sampled text."""
        check_token_ids(sampling.stop_token_ids, self.vocabulary.size)
        return self.vocabulary.ends.union(sampling.stop_token_ids)

    @torch.no_grad()
    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Return log-probabilities [T], nats, under the full softmax; without gradient, on the CPU."""
        logprobs = []
        for start in range(0, len(completions), BATCH):
            logits, tokens = self.completion_logits(completions[start : start + BATCH])
            logits = logits / temperature if temperature != 1 else logits
            logprobs.append((logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)).cpu())
        return torch.cat(logprobs) if logprobs else torch.zeros(0)

    def logits(self, ids: Tensor) -> Tensor:
        """Return logits [B, T, V], at least float32, of token ids [B, T]."""
        return self._wide(self.module(ids))

    def advance(self, ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return the logits of tokens after a state, and the next state; only for modules with ``advance``."""
        module: Any = self.module
        scores, after = module.advance(ids, state)
        return self._wide(scores), after

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
        """Return the logits [P, V] after each prompt, and the states.

        Prompts of equal length are read together, so no state ever reads padding.
        """
        by_length: dict[int, list[int]] = {}
        for index, ids in enumerate(prompts):
            by_length.setdefault(len(ids), []).append(index)
        read = [
            self.advance(torch.tensor([prompts[index] for index in group], device=self.device), None)
            for group in by_length.values()
        ]
        order = torch.tensor([index for group in by_length.values() for index in group], device=self.device).argsort()
        logits = torch.cat([scores[:, -1] for scores, _ in read])[order]
        parts = zip(*(state for _, state in read), strict=True)
        return logits, tuple(torch.cat(part)[order] for part in parts)

    def completion_logits(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Return the logits [T, V] that predict each completion token, and the tokens [T].

        Raises:
            InputError: a prompt with its completion is longer than the module's positions.
        """
        longest = max((len(c.prompt_ids) + len(c.token_ids) for c in completions), default=0)
        if self.max_positions is not None and longest > self.max_positions:
            raise InputError(
                f"a text of {longest} tokens does not fit into the module's {self.max_positions} positions: shorten it"
            )
        if not any(completion.token_ids for completion in completions):
            return torch.zeros(0, self.vocabulary.size), torch.zeros(0, dtype=torch.long)
        return self._from_states(completions) if self.advances else self._from_texts(completions)

    def _from_texts(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Run each prompt with its completion, padded on the right, where a causal module cannot see the padding."""
        ids, _ = pad_token_ids([(*c.prompt_ids, *c.token_ids) for c in completions], left=False, device=self.device)
        drawn = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        for row, completion in enumerate(completions):
            start = len(completion.prompt_ids)
            drawn[row, start : start + len(completion.token_ids)] = True
        # The scores at a position predict the token at the next position.
        return self.logits(ids[:, :-1])[drawn[:, 1:]], ids[drawn]

    def _from_states(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Run each distinct prompt once, and its completions from the state after it."""
        prompt_rows = {ids: row for row, ids in enumerate(dict.fromkeys(c.prompt_ids for c in completions))}
        last, state = self.read_prompts(list(prompt_rows))
        owners = torch.tensor([prompt_rows[c.prompt_ids] for c in completions], device=self.device)
        answers, answer_mask = pad_token_ids([c.token_ids for c in completions], left=False, device=self.device)
        drawn = answer_mask.bool()
        # Not last[owners], whose backward pass adds with atomics, in an order that differs from run to run.
        logits = last.index_select(0, owners).unsqueeze(1)
        if answers.shape[1] > 1:
            rest, _ = self.advance(answers[:, :-1], tuple(part.index_select(0, owners) for part in state))
            logits = torch.cat([logits, rest], 1)
        return logits[drawn], answers[drawn]

    def _wide(self, scores: Tensor) -> Tensor:
        return as_logits(scores.to(torch.promote_types(scores.dtype, torch.float32)), self.scores)

    def frozen_copy(self) -> ModuleModel:
        """Return a frozen copy. Raises InputError if the module cannot be copied with its weights."""
        return ModuleModel(_frozen_copy(self.module), self.vocabulary, scores=self.scores, check=False)


class ModulePolicy(ModuleModel):
    """A module that is trained. Raises InputError as ``ModuleModel``, or if the module has no trainable parameters."""

    def __init__(self, module: nn.Module, vocabulary: Vocabulary, *, scores: ScoreKind, name: str = "") -> None:
        super().__init__(module, vocabulary, scores=scores, name=name)
        if not self.trainable():
            raise InputError(f"module '{name or type(module).__name__}' has no parameter to train: set requires_grad")
        self.reset_reference()

    def reset_reference(self) -> None:
        """Replace the reference by a frozen copy of the current module."""
        self.reference = self.frozen_copy()

    def update_lagged_policy(self) -> None:
        """Replace the lagged policy by a frozen copy of the current module."""
        self.lagged = self.frozen_copy()

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return log-probabilities with gradient and entropies, [T] each, nats, on the CPU.

        Only the sampled token's log-probability of each row enters the policy gradient. The mean over all tokens of a
        row, as in some tutorials, is a different quantity (docs/en/policies.md).
        """
        logits, tokens = self.completion_logits(completions)
        lagged = None
        if sampling.lagged_top_p < 1 and self.lagged is not None:
            with torch.no_grad():
                lagged, _ = self.lagged.completion_logits(completions)
        early = early_ends(
            [range(len(completion.token_ids)) for completion in completions], self.stop_ids(sampling), sampling,
            logits.device,
        )  # fmt: skip
        return token_stats(logits, tokens, sampling, lagged=lagged, early=early, entropy_gradient=entropy_gradient)

    @cached_property
    def max_microbatch_tokens(self) -> int:
        """Number of tokens whose activations fill a sixth of the memory, estimated from the weights' widths.

        The estimate counts each layer's output four times and the scores eight times.
        """
        weights = [weight for weight in self.module.parameters() if weight.dim() > 1]
        width = 4 * sum(max(weight.shape[0], weight.shape[-1]) for weight in weights) + 8 * self.vocabulary.size
        bytes_per_number = max((weight.element_size() for weight in weights), default=4)
        return max(1, device_memory_bytes(self.device) // 6 // (width * bytes_per_number))

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return trainable_weights(self.module)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, ``vocabulary.json``, and ``lagged.safetensors`` if there is a lagged policy."""
        for name, model in ((WEIGHTS, self), (LAGGED, self.lagged)):
            if model is not None:
                weights = named_weights(model.module)
                save_file({key: tensor.detach().contiguous() for key, tensor in weights.items()}, folder / name)
        write_vocabulary(self.vocabulary, folder)

    def load(self, folder: Path) -> None:
        """Load saved weights in place, bit for bit.

        Raises:
            InputError: a file is missing or damaged, or the weights or the vocabulary belong to another model.
        """
        if read_vocabulary(folder / FILE).to_json() != self.vocabulary.to_json():
            raise InputError(f"{folder} has another vocabulary than this policy: the folder belongs to another model")
        _load_weights(self.module, folder / WEIGHTS, self.device)
        if self.lagged is not None and (folder / LAGGED).exists():
            _load_weights(self.lagged.module, folder / LAGGED, self.device)


def _load_weights(module: nn.Module, path: Path, device: torch.device) -> None:
    """Load weights in place. Raises InputError if the file is missing, damaged, or belongs to another model."""
    folder = path.parent
    try:
        saved = load_file(path, device=str(device))
    except Exception as error:  # safetensors has an error of its own kind
        raise InputError(f"{path} cannot be read: {one_line(error)[:200]}") from error
    weights = named_weights(module)
    for name in weights.keys() | saved.keys():
        if name not in weights or name not in saved or weights[name].shape != saved[name].shape:
            raise InputError(f"{folder}: weight '{name}' does not fit this policy: the folder belongs to another model")
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(saved[name])


def is_keras(module: object) -> bool:
    """Return whether an object is a Keras model or layer, without importing Keras."""
    return any(base.__module__.partition(".")[0] == "keras" for base in type(module).__mro__)


def _frozen_copy(module: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(module).requires_grad_(False)
        pairs = zip(named_weights(module).values(), named_weights(copied).values(), strict=True)
        equal = all(torch.equal(one, other) for one, other in pairs)
    except Exception as error:  # Keras copies by writing and reading the model, which may fail in many ways
        raise InputError(
            f"module {type(module).__name__} cannot be copied, and the reference is a frozen copy of it "
            f"({type(error).__name__}: {one_line(error)[:200]}); give it a __deepcopy__, and register a Keras layer of "
            "your own"
        ) from error
    if not equal:
        raise InputError(f"module {type(module).__name__}: copy.deepcopy changes its weights; fix its __deepcopy__")
    return copied.eval()


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and saved buffers by name, each once; checkpoints use these names.

    Keras numbers its layers process-wide (``lstm_3``), so the names of its weights begin with their index instead.
    """
    if is_keras(module):
        keras_model: Any = module
        return {f"{index}.{weight.name}": weight.value for index, weight in enumerate(keras_model.weights)}
    kept = module.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in kept.items() if not isinstance(tensor, nn.Parameter)}
    return {**dict(module.named_parameters()), **buffers}


def trainable_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that need a gradient, by the names of ``named_weights``."""
    weights = named_weights(module).items()
    return {name: tensor for name, tensor in weights if isinstance(tensor, nn.Parameter) and tensor.requires_grad}
