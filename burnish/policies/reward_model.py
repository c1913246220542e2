"""Reward model: a causal language model whose last hidden state gives a text's score through a linear head.

The state after a text's last token is the state that predicts one more token. A text plus any token, arranged like
every other completion (each prompt once, no padding), therefore gives the score without a special layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from burnish.errors import InputError, one_line
from burnish.policies.causal_lm import BATCH, CausalModel, CausalPolicy
from burnish.policies.chat_answers import TurnEnd, answer_text
from burnish.policies.kernels.packing import PAD_ID, hidden_states, unwrap_peft
from burnish.policies.loading import load_model
from burnish.system.paths import expanded
from burnish.types import Completion, Message, Prompt

HEAD = "reward_head.safetensors"
HEAD_WEIGHT = "weight"
"""Name of the head's weight in its file and among the trained parameters."""
Reads = Literal["text", "chat", "both"]
"""What a reward model learnt from: plain text, conversations through the chat template, or both."""


class RewardModel:
    """Scores texts by ``w . state(prompt, completion)``, where w starts at 0; only differences have a meaning.

    Args:
        backbone: a causal language model, fully trained or with an adapter; its own head is not used.
        max_tokens: limit of a prompt with its completion; longer texts are truncated, as in training.
        reads: the form in which it learnt prompts, and in which it reads all of them.
    """

    def __init__(self, backbone: CausalModel, max_tokens: int, reads: Reads = "text") -> None:
        self.backbone = backbone
        self.max_tokens = max_tokens
        self.reads: Reads = reads
        model = unwrap_peft(backbone.model)
        # The input size of the model's own head is the size of the states: some models project the embeddings.
        width = (model.get_output_embeddings() or model.get_input_embeddings()).weight.shape[1]
        dtype = torch.promote_types(backbone.model.dtype, torch.float32)
        self.head = nn.Parameter(torch.zeros(width, dtype=dtype, device=backbone.device))

    @property
    def _policy(self) -> CausalPolicy:
        assert isinstance(self.backbone, CausalPolicy), "only a policy can be trained and saved"
        return self.backbone

    def scores(self, completions: Sequence[Completion]) -> Tensor:
        """Return the scores [N] with gradient, at least float32, on the CPU."""
        longer = [replace(one, token_ids=(*one.token_ids, PAD_ID)) for one in completions]
        states, _ = hidden_states(self.backbone.layout, self.backbone.model, longer)
        ends = torch.tensor([len(one.token_ids) for one in longer], device=states.device).cumsum(0) - 1
        return (states[ends].to(self.head.dtype) @ self.head).cpu()

    @torch.no_grad()
    def score_texts(self, completions: Sequence[Completion]) -> list[float]:
        """Return the scores [N] of the completions' texts, encoded by this model's own tokenizer; its control tokens
        inside a text are text.

        Prompts are read as they were learnt: as plain text, or through this model's chat template. Texts longer than
        ``max_tokens`` are truncated, as in training. A text with finish reason "stop" ends with the end-of-text token
        or the one that ends a turn; a truncated one does not.

        Raises:
            InputError: a prompt alone is too long; or the model learnt plain text, and it is a conversation of several
                turns.
        """
        texts = [self._encoded(completion) for completion in completions]
        scores = [self.scores(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return [float(score) for part in scores for score in part]

    def _encoded(self, completion: Completion) -> Completion:
        prompt = self._as_learnt(completion.prompt)
        prompt_ids = self.backbone.encode_prompt(prompt)
        room = self.max_tokens - len(prompt_ids)
        if room < 1:
            raise InputError(
                f"prompt '{completion.prompt.id}' has {len(prompt_ids)} tokens, and this reward model reads "
                f"{self.max_tokens} with the answer: give shorter prompts, or train one with a larger batch.max_tokens"
            )
        token_ids = (*self._answer(prompt, completion.text), *self._end(prompt, completion))[:room]
        return replace(completion, prompt=prompt, prompt_ids=prompt_ids, token_ids=token_ids, sampler_logprobs=())

    def _as_learnt(self, prompt: Prompt) -> Prompt:
        if self.reads == "chat" and not prompt.messages:
            return replace(prompt, messages=(Message("user", prompt.text),))
        return replace(prompt, text=untemplated_text(prompt), messages=()) if self.reads == "text" else prompt

    def _answer(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """Return an answer's tokens as fine-tuning would write it after this prompt."""
        backbone = self.backbone
        if prompt.messages:
            messages = [*prompt.messages, Message("assistant", backbone.controls.broken(text, answer=True))]
            try:
                written = answer_text(backbone.chat, TurnEnd(), messages, len(prompt.messages))
            except ValueError:  # the policy wrote what no row could have, such as half a thought
                written = None
            if written is not None:
                return (*backbone.encode_rendered(written.given), *backbone.encode_rendered(written.learnt))
        return backbone.encode(text, begins=not (prompt.text or prompt.messages))

    def _end(self, prompt: Prompt, completion: Completion) -> tuple[int, ...]:
        if completion.finish_reason != "stop":
            return ()
        turn, end = self.backbone.turn_end, self.backbone.text_end
        if prompt.messages and turn.token is not None:
            end = turn.token
        text = self.backbone.encode_rendered(turn.text) if prompt.messages else ()
        return (*text, *(() if end is None else (end,)))

    @property
    def max_microbatch_tokens(self) -> int:
        """Number of tokens whose forward and backward pass fit into memory."""
        return self._policy.max_microbatch_tokens

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Return the backbone's parameters except its head's, and the reward head's weight as the last."""
        model = unwrap_peft(self.backbone.model)
        own = model.get_output_embeddings()
        unused = set() if own is None else {id(parameter) for parameter in own.parameters()}
        # A head that is tied to the embedding is trained as the embedding.
        unused -= {id(parameter) for parameter in model.get_input_embeddings().parameters()}
        trained = {name: weight for name, weight in self._policy.trainable().items() if id(weight) not in unused}
        return {**trained, HEAD_WEIGHT: self.head}

    @property
    def saves_rounded(self) -> bool:
        """Whether ``save`` drops bits of the backbone's weights."""
        return isinstance(self.backbone, CausalPolicy) and self.backbone.saves_rounded

    def save(self, folder: Path) -> None:
        """Write the backbone as a language model, and ``reward_head.safetensors`` beside it."""
        self._policy.save(folder)
        # One entry: safetensors writes several in an order that differs between equal runs.
        settings = json.dumps({"max_tokens": self.max_tokens, "reads": self.reads})
        save_file({HEAD_WEIGHT: self.head.detach()}, folder / HEAD, metadata={"settings": settings})

    def load(self, folder: Path) -> None:
        """Load saved weights in place, bit for bit. Raises InputError if they belong to another model."""
        self._policy.load(folder)
        self._take_head(folder)

    def _take_head(self, folder: Path) -> None:
        weight, _, _ = read_reward_head(folder)
        if weight.shape != self.head.shape:
            raise InputError(f"{folder}: its reward head has {list(weight.shape)} weights, the model {len(self.head)}")
        with torch.no_grad():
            self.head.copy_(weight)


def untemplated_text(prompt: Prompt) -> str:
    """Return a prompt's text without a template. Raises InputError if it is a conversation of several turns."""
    if not prompt.messages:
        return prompt.text
    if any(message.role != "user" for message in prompt.messages[:-1]):
        raise InputError(
            f"prompt '{prompt.id}' is a conversation of several messages, and this reward model reads plain text: "
            "take one that reads conversations, or give prompts of one message"
        )
    return prompt.messages[-1].content


def find_model_folder(path: str) -> Path:
    """Return the model folder of a run of ``burnish reward-model``, or the folder itself.

    Raises InputError if the folder does not exist or is not a reward model, or the run has no checkpoint yet.
    """
    run = expanded(path)
    if not path or not run.is_dir():
        raise InputError(f"reward model '{path}': there is no such folder; name a run of `burnish reward-model`")
    folder = run / "model" if (run / "recipe.toml").is_file() else run
    if folder is not run and not folder.is_dir():
        raise InputError(f"reward model '{path}': this run has no checkpoint yet; train it to its first one")
    if not (folder / HEAD).is_file():
        raise InputError(
            f"'{path}' is not a reward model: it has no {HEAD}; train one with `burnish reward-model RECIPE`, or for a "
            'sequence classifier of transformers set use = "classifier" and model'
        )
    return folder


def read_reward_head(folder: Path) -> tuple[Tensor, int, Reads]:
    """Return the head's weight, the model's token limit and what it reads. Raises InputError if the file is damaged."""
    try:
        with safe_open(folder / HEAD, framework="pt") as file:
            facts = file.metadata() or {}
            # Without these entries, it is of a version that trained reward models on plain text only.
            facts = json.loads(facts["settings"]) if "settings" in facts else facts
            reads = next(one for one in get_args(Reads) if one == facts.get("reads", "text"))
            weight, most = file.get_tensor(HEAD_WEIGHT), int(facts["max_tokens"])
        if most < 1 or not weight.isfinite().all():
            raise ValueError(f"max_tokens = {most}, or a weight that is not finite")
        return weight, most, reads
    except Exception as error:  # safetensors has an error of its own kind
        reason = one_line(error)[:120]
        raise InputError(f"{folder / HEAD} cannot be read ({reason}): copy it again, or train anew") from error


def load_reward_model(path: str, *, offline: bool = True) -> RewardModel:
    """Load a frozen reward model from a run or model folder; an adapter is merged into its base.

    Raises InputError as ``find_model_folder`` and ``load_model``.
    """
    folder = find_model_folder(path).resolve()
    _, max_tokens, reads = read_reward_head(folder)
    backbone = load_model(folder, offline=offline)
    backbone.model.requires_grad_(False)
    model = RewardModel(backbone, max_tokens, reads)
    model._take_head(folder)
    model.head.requires_grad_(False)
    return model
