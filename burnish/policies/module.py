"""Any torch module that maps token ids [B, T] to scores [B, T, V] as a policy.

What the scores are is said, never guessed, and a module is tried on a few tokens before it is trusted (``contract``). A
module that can read on from a state offers ``advance(tokens [B, T], state) -> (scores [B, T, V], state)``, where a state is
a tuple of tensors whose first dimension is the batch and None stands before the first token: then each distinct prompt is
read once, and sampling reads one token a step. Any other module is given the whole text each time.
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
from burnish.policies.kernels.packing import device_memory_bytes
from burnish.policies.module_contract import check_module
from burnish.policies.sampling_distribution import sampling_logprobs
from burnish.policies.vocabulary import FILE, Vocabulary, read_vocabulary, refuse_messages, write_vocabulary
from burnish.protocols import LanguageModel
from burnish.types import Completion, Prompt, SamplingParams, TokenStats

ScoreKind = Literal["logits", "probabilities", "logprobs"]
State = tuple[Tensor, ...]
WEIGHTS = "model.safetensors"
LAGGED = "lagged.safetensors"


def as_logits(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Scores [..., V] as logits, up to a constant in each row: the logarithm of probabilities, all else as it is.

    A probability that has underflowed to 0 counts as the smallest number there is, whose gradient is 0 and not 0 / 0.
    """
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log() if kind == "probabilities" else scores


class ModuleModel:
    """A module with its vocabulary: encodes, decodes, and says how probable a completion is.

    Args:
        module: put into evaluation mode; dropout would make training another policy than the one that was sampled. It may
            say ``max_positions``, the longest text that it can read.
        vocabulary: as many tokens as the module has scores.
        scores: what the module returns.
        batch: completions in one forward pass where no gradient is wanted.
        name: what messages call the module.
        check: whether the module is tried first.

    Raises:
        InputError: the module does not keep the contract; the message says where.
    """

    def __init__(
        self,
        module: nn.Module,
        vocabulary: Vocabulary,
        *,
        scores: ScoreKind,
        batch: int = 64,
        name: str = "",
        check: bool = True,
    ) -> None:
        self.module = module.eval()
        self.vocabulary = vocabulary
        self.scores: ScoreKind = scores
        self.batch = batch
        self.reference: LanguageModel = self
        """What the module's texts are judged by; itself, until somebody says otherwise."""
        self.lagged: ModuleModel | None = None
        """An earlier policy, where it masks what is drawn; see ``update_lagged_policy``."""
        self.advances = callable(getattr(module, "advance", None))
        if check:
            check_module(module, vocabulary.size, scores, name or type(module).__name__, self.device)

    @property
    def device(self) -> torch.device:
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def max_positions(self) -> int | None:
        """Tokens that fit into one text, prompt and completion together; None where the module sets no bound."""
        found = getattr(self.module, "max_positions", None)
        return found if isinstance(found, int) else None

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text with nothing around it."""
        return self.vocabulary.encode(text)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt, after the token that every text begins with, where there is one.

        Raises:
            InputError: a character has no token, the prompt is empty and there is no token to begin with, or it is a
                conversation, for which a bare vocabulary has no template.
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

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.vocabulary.decode(token_ids)

    @torch.no_grad()
    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """[T], nats, under the whole softmax; on the CPU."""
        found = []
        for start in range(0, len(completions), self.batch):
            logits, tokens = self.completion_logits(completions[start : start + self.batch])
            logits = logits / temperature if temperature != 1 else logits
            found.append((logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)).cpu())
        return torch.cat(found) if found else torch.zeros(0)

    def logits(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, V], at least float32."""
        return self._wide(self.module(ids))

    def advance(self, ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        """``logits`` from a state on, and the state after them; only where the module has ``advance``."""
        module: Any = self.module
        scores, after = module.advance(ids, state)
        return self._wide(scores), after

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
        """Logits [P, V] of what follows each prompt, and the states after them. Prompts of one length are read together,
        so there is no padding that a state could have read."""
        places: dict[int, list[int]] = {}
        for place, ids in enumerate(prompts):
            places.setdefault(len(ids), []).append(place)
        read = [
            self.advance(torch.tensor([prompts[place] for place in group], device=self.device), None)
            for group in places.values()
        ]
        order = torch.tensor([place for group in places.values() for place in group], device=self.device).argsort()
        logits = torch.cat([scores[:, -1] for scores, _ in read])[order]
        parts = zip(*(state for _, state in read), strict=True)
        return logits, tuple(torch.cat(part)[order] for part in parts)

    def completion_logits(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Logits [T, V] that each completion token was drawn from, and the tokens [T].

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
        """Each prompt with its completion, padded on the right, where nothing that looks back can see it."""
        ids, _ = padded([(*c.prompt_ids, *c.token_ids) for c in completions], self.device)
        drawn = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        for row, completion in enumerate(completions):
            start = len(completion.prompt_ids)
            drawn[row, start : start + len(completion.token_ids)] = True
        # The scores at one position are of the token at the next.
        return self.logits(ids[:, :-1])[drawn[:, 1:]], ids[drawn]

    def _from_states(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Each distinct prompt once; its completions read on from the state after it."""
        place = {ids: row for row, ids in enumerate(dict.fromkeys(c.prompt_ids for c in completions))}
        last, state = self.read_prompts(list(place))
        owner = torch.tensor([place[c.prompt_ids] for c in completions], device=self.device)
        answers, drawn = padded([c.token_ids for c in completions], self.device)
        # Not last[owner], whose backward pass adds with atomics, in whatever order threads come.
        logits = last.index_select(0, owner).unsqueeze(1)
        if answers.shape[1] > 1:
            rest, _ = self.advance(answers[:, :-1], tuple(part.index_select(0, owner) for part in state))
            logits = torch.cat([logits, rest], 1)
        return logits[drawn], answers[drawn]

    def _wide(self, scores: Tensor) -> Tensor:
        return as_logits(scores.to(torch.promote_types(scores.dtype, torch.float32)), self.scores)


class ModulePolicy(ModuleModel):
    """The trained policy. The arguments and errors are those of ``ModuleModel``; besides, a module without a parameter to
    train is refused."""

    def __init__(
        self,
        module: nn.Module,
        vocabulary: Vocabulary,
        *,
        scores: ScoreKind,
        batch: int = 64,
        name: str = "",
        check: bool = True,
    ) -> None:
        super().__init__(module, vocabulary, scores=scores, batch=batch, name=name, check=check)
        if not self.trainable():
            raise InputError(f"module '{name or type(module).__name__}' has no parameter to train: see requires_grad")
        self.reset_reference()

    def reset_reference(self) -> None:
        """Makes a frozen copy of the module as it is now the reference."""
        frozen = frozen_copy(self.module)
        self.reference = ModuleModel(frozen, self.vocabulary, scores=self.scores, batch=self.batch, check=False)

    def update_lagged_policy(self) -> None:
        """Makes a frozen copy of the module as it is now the lagged policy."""
        frozen = frozen_copy(self.module)
        self.lagged = ModuleModel(frozen, self.vocabulary, scores=self.scores, batch=self.batch, check=False)

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Log-probabilities [T] with gradient and entropies [T], nats, on the CPU.

        Of each row of scores only the sampled token's log-probability is taken: its gradient times the reward is the
        policy gradient. The mean over all tokens of the row, as some tutorials have it, is another quantity
        (docs/en/policies.md).
        """
        logits, tokens = self.completion_logits(completions)
        lagged = None
        if sampling.lagged_top_p < 1 and self.lagged is not None:
            with torch.no_grad():
                lagged, _ = self.lagged.completion_logits(completions)
        logprobs = sampling_logprobs(logits, sampling, always=tokens, lagged=lagged)
        chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
        kept = logprobs if entropy_gradient else logprobs.detach()
        # A token that cannot be drawn counts 0, and so does its gradient; entr would make it infinity times 0.
        entropy = -(kept.exp() * kept.masked_fill(kept == -torch.inf, 0.0)).sum(-1)
        return TokenStats(chosen.cpu(), entropy.cpu())

    @cached_property
    def max_microbatch_tokens(self) -> int:
        """Tokens whose activations take a sixth of the memory, as far as the widths of the weights tell: each layer's
        output is taken to be kept four times over, and the scores eight times."""
        weights = [weight for weight in self.module.parameters() if weight.dim() > 1]
        width = 4 * sum(max(weight.shape[0], weight.shape[-1]) for weight in weights) + 8 * self.vocabulary.size
        bytes_a_number = max((weight.element_size() for weight in weights), default=4)
        return max(1, device_memory_bytes(self.device) // 6 // (width * bytes_a_number))

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {
            name: tensor
            for name, tensor in named_weights(self.module).items()
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad
        }

    def save(self, folder: Path) -> None:
        """``model.safetensors`` and ``vocabulary.json``, and ``lagged.safetensors`` where there is a lagged policy."""
        for name, model in ((WEIGHTS, self), (LAGGED, self.lagged)):
            if model is not None:
                weights = named_weights(model.module)
                save_file({key: tensor.detach().contiguous() for key, tensor in weights.items()}, folder / name)
        write_vocabulary(self.vocabulary, folder)

    def load(self, folder: Path) -> None:
        """Takes over saved weights in place, bit for bit.

        Raises:
            InputError: a file is missing or damaged, or the weights or the vocabulary belong to another model.
        """
        if read_vocabulary(folder / FILE).to_json() != self.vocabulary.to_json():
            raise InputError(f"{folder} has another vocabulary than this policy: another model's folder")
        _take_weights(self.module, folder / WEIGHTS, self.device)
        if self.lagged is not None and (folder / LAGGED).exists():
            _take_weights(self.lagged.module, folder / LAGGED, self.device)


def _take_weights(module: nn.Module, path: Path, device: torch.device) -> None:
    """Raises InputError where the file is missing or damaged, or holds another model's weights."""
    folder = path.parent
    try:
        saved = load_file(path, device=str(device))
    except Exception as error:  # safetensors has an error of its own kind
        reason = one_line(error)
        raise InputError(f"{path} cannot be read: {reason[:200]}") from error
    weights = named_weights(module)
    for name in weights.keys() | saved.keys():
        if name not in weights or name not in saved or weights[name].shape != saved[name].shape:
            raise InputError(f"{folder}: weight '{name}' does not fit this policy: another model's folder")
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(saved[name])


def is_keras(module: object) -> bool:
    """Whether it is a Keras model or layer, of whatever backend; Keras is not imported for that."""
    return any(base.__module__.partition(".")[0] == "keras" for base in type(module).__mro__)


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that no optimizer moves. Raises InputError where the module cannot be copied with its weights."""
    try:
        copied = copy.deepcopy(module).requires_grad_(False)
        same = zip(named_weights(module).values(), named_weights(copied).values(), strict=True)
        whole = all(torch.equal(one, other) for one, other in same)
    except (
        Exception
    ) as error:  # Keras copies by writing the model down and reading it again, which may fail in many ways
        reason = one_line(error)
        raise InputError(
            f"module {type(module).__name__} cannot be copied, and the reference is a frozen copy of it "
            f"({type(error).__name__}: {reason[:200]}); give it a __deepcopy__, and register a Keras layer of your own"
        ) from error
    if not whole:
        raise InputError(f"module {type(module).__name__}: copy.deepcopy gives it other weights; mend its __deepcopy__")
    return copied.eval()


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or saved buffer, each once: what is saved, and what the optimizer's state is named by.

    Keras numbers its layers through the whole process (``lstm_3``), so the names of its weights are their places in the
    model instead.
    """
    if is_keras(module):
        keras_model: Any = module
        return {f"{place}.{weight.name}": weight.value for place, weight in enumerate(keras_model.weights)}
    kept = module.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in kept.items() if not isinstance(tensor, nn.Parameter)}
    return {**dict(module.named_parameters()), **buffers}


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [B, T], filled up on the right with token 0, and [B, T] True on real tokens."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = True
    return ids.to(device), mask.to(device)
