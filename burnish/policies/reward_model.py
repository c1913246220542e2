"""A reward model: a causal language model whose last state, through one row of weights, is a text's score.

The state behind a text's last token is what one more token would be drawn from. So a text with any token added to it, laid
out as every other (each prompt once, no padding), gives the score, and no layout has to know of reward models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from burnish.errors import InputError, one_line
from burnish.policies.causal_lm import CausalModel, CausalPolicy
from burnish.policies.kernels.attention import UnsupportedAttention
from burnish.policies.kernels.packing import PAD_ID, padded_states, unwrap_peft
from burnish.policies.loading import load_model
from burnish.system.paths import expanded
from burnish.types import Completion

HEAD = "reward_head.safetensors"
HEAD_WEIGHT = "weight"
"""The head's own name, in its file and among what is trained."""


class RewardModel:
    """Scores texts: ``w . state(prompt, completion)``, a number without unit; only differences mean something.

    Args:
        backbone: any causal language model, whole or with an adapter. Its own head has no part in the score.
        max_tokens: of a prompt with its completion; what is longer was cut there when it learnt.
        batch: texts in one forward pass where no gradient is wanted.

    The row of weights begins at zero, so that before training every text scores 0 and every pair is even.
    """

    def __init__(self, backbone: CausalModel, max_tokens: int, *, batch: int = 16) -> None:
        self.backbone = backbone
        self.max_tokens = max_tokens
        self.batch = batch
        self.head = nn.Parameter(torch.zeros(_width(backbone), dtype=_wide(backbone), device=backbone.device))

    def scores(self, completions: Sequence[Completion]) -> Tensor:
        """[N] with gradient, at least float32, on the CPU."""
        longer = [replace(one, token_ids=(*one.token_ids, PAD_ID)) for one in completions]
        model = self.backbone.model
        try:
            states, _ = (self.backbone.layout or padded_states)(model, longer, None)
        except UnsupportedAttention:  # texts longer than the window that its attention sees
            states, _ = padded_states(model, longer)
        ends = torch.tensor([len(one.token_ids) for one in longer], device=states.device).cumsum(0) - 1
        return (states[ends].to(self.head.dtype) @ self.head).cpu()

    @torch.no_grad()
    def score_texts(self, completions: Sequence[Completion]) -> list[float]:
        """Scores [N] of texts as they read, whoever wrote them: they are encoded by this model's own tokenizer.

        Texts longer than ``max_tokens`` are cut there, as in training. One that was stopped by its writer ends with the
        end-of-text token; one that was cut does not.

        Raises:
            InputError: a prompt alone is longer, or the model has no chat template for a conversation.
        """
        texts = [self._encoded(completion) for completion in completions]
        found = [
            self.scores(texts[start : start + self.batch]) for start in range(0, len(texts), self.batch)
        ]  # fmt: skip
        return [float(score) for part in found for score in part]

    def _encoded(self, completion: Completion) -> Completion:
        prompt_ids = self.backbone.encode_prompt(completion.prompt)
        room = self.max_tokens - len(prompt_ids)
        if room < 1:
            raise InputError(
                f"prompt '{completion.prompt.id}' has {len(prompt_ids)} tokens, and this reward model reads "
                f"{self.max_tokens} with the answer: give shorter prompts, or train one with a larger batch.max_tokens"
            )
        end = (self.backbone.tokenizer.eos_token_id,) if completion.finish_reason == "stop" else ()
        token_ids = (*self.backbone.encode(completion.text), *end)[:room]
        return replace(completion, prompt_ids=prompt_ids, token_ids=token_ids, sampler_logprobs=())

    @property
    def max_microbatch_tokens(self) -> int:
        """As of a policy."""
        assert isinstance(self.backbone, CausalPolicy), "only a trained model is asked"
        return self.backbone.max_microbatch_tokens

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The backbone's, without a head of its own, and the row of weights, which comes last."""
        assert isinstance(self.backbone, CausalPolicy), "only a trained model is asked"
        model = unwrap_peft(self.backbone.model)
        own = model.get_output_embeddings()
        unused = set() if own is None else {id(parameter) for parameter in own.parameters()}
        # Where embedding and head are one, it is the embedding that is trained.
        unused -= {id(parameter) for parameter in model.get_input_embeddings().parameters()}
        found = {
            name: parameter for name, parameter in self.backbone.trainable().items() if id(parameter) not in unused
        }
        return {**found, HEAD_WEIGHT: self.head}

    def save(self, folder: Path) -> None:
        """The backbone as any language model, and ``reward_head.safetensors`` beside it."""
        assert isinstance(self.backbone, CausalPolicy), "only a trained model is saved"
        self.backbone.save(folder)
        save_file({HEAD_WEIGHT: self.head.detach()}, folder / HEAD, metadata={"max_tokens": str(self.max_tokens)})

    def load(self, folder: Path) -> None:
        """Takes over saved weights in place, bit for bit. Raises InputError where they belong to another model."""
        assert isinstance(self.backbone, CausalPolicy), "only a trained model is resumed"
        self.backbone.load(folder)
        self._take_head(folder)

    def _take_head(self, folder: Path) -> None:
        weight, _ = read_reward_head(folder)
        if weight.shape != self.head.shape:
            raise InputError(f"{folder}: its reward head has {list(weight.shape)} weights, the model {len(self.head)}")
        with torch.no_grad():
            self.head.copy_(weight)


def _width(backbone: CausalModel) -> int:
    """Of the states: that of the model's own head, since some models project between embeddings and states."""
    model = unwrap_peft(backbone.model)
    return int((model.get_output_embeddings() or model.get_input_embeddings()).weight.shape[1])


def _wide(backbone: CausalModel) -> torch.dtype:
    return torch.promote_types(backbone.model.dtype, torch.float32)


def find_model_folder(path: str) -> Path:
    """The model folder of a reward model: of a run of ``burnish reward-model``, or the folder itself.

    Raises:
        InputError: there is no such folder, the run has no checkpoint yet, or it holds no reward model.
    """
    run = expanded(path)
    if not path or not run.is_dir():
        raise InputError(f"reward model '{path}': there is no such folder; name a run of `burnish reward-model`")
    folder = run / "model" if (run / "recipe.toml").is_file() else run
    if folder is not run and not folder.is_dir():
        raise InputError(f"reward model '{path}': this run has no checkpoint yet; train it to its first one")
    if not (folder / HEAD).is_file():
        raise InputError(
            f"reward model '{path}' is none: it has no {HEAD}; train one with `burnish reward-model RECIPE`"
        )
    return folder


def read_reward_head(folder: Path) -> tuple[Tensor, int]:
    """The row of weights, and the tokens that the model reads. Raises InputError where the file is damaged."""
    try:
        with safe_open(folder / HEAD, framework="pt") as file:
            return file.get_tensor(HEAD_WEIGHT), int((file.metadata() or {})["max_tokens"])
    except Exception as error:  # safetensors has an error of its own kind
        reason = one_line(error)
        raise InputError(f"{folder / HEAD} cannot be read ({reason[:120]}): copy it again, or train anew") from error


def load_reward_model(path: str, *, offline: bool = True) -> RewardModel:
    """A frozen reward model from a run or model folder, an adapter merged into its base.

    Raises:
        InputError: as ``find_model_folder`` and ``load_model``.
    """
    folder = find_model_folder(path).resolve()
    _, max_tokens = read_reward_head(folder)
    backbone = load_model(folder, offline=offline)
    backbone.model.requires_grad_(False)
    found = RewardModel(backbone, max_tokens)
    found._take_head(folder)
    found.head.requires_grad_(False)
    return found
