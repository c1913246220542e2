"""Sequence classifier: a transformers model with a classification head, which scores texts.

Each text is read without padding, so that its score depends neither on the texts beside it nor on a padding token:
decoder models read their score at the last token that is not padding, and many name no padding token at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burnish.catalogue.convert import resolve_model
from burnish.errors import InputError
from burnish.policies.causal_lm import BATCH
from burnish.policies.construction import construct
from burnish.policies.kernels.layout_probe import max_text_tokens
from burnish.policies.loading import check_chat
from burnish.policies.model_text import ModelText
from burnish.policies.pretrained import loading_errors, quiet_transformers, refuse_broken_weights
from burnish.policies.reward_model import untemplated_text
from burnish.policies.token_rows import check_token_rows, load_tokenizer
from burnish.registry import nearest
from burnish.system.machine import resolve_device
from burnish.types import Completion, Message

Reading = Literal["chat", "pair", "completion"]
"""What a classifier reads: the conversation by its chat template, prompt and completion as two texts, or the latter."""
Overlong = Literal["left", "right", "refuse"]
"""The side that a text loses which is too long, or none: it is refused."""
_UNLIMITED = 10**9
"""Tokenizers without a limit name a much larger one."""


class SequenceClassifier(ModelText):
    """A frozen ``*ForSequenceClassification`` model with its tokenizer."""

    @property
    def labels(self) -> list[str]:
        """Names of the outputs, in their order."""
        names = self.model.config.id2label
        return [str(names[index]) for index in range(self.model.config.num_labels)]

    @property
    def max_tokens(self) -> int:
        """Longest text that model and tokenizer take."""
        limits = [max_text_tokens(self.model.config.get_text_config()), self.tokenizer.model_max_length]
        for name, module in self.model.named_modules():
            # RoBERTa's positions begin behind the row for padding, and its config counts the rows.
            if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None:
                limits.append(module.num_embeddings - module.padding_idx - 1)
        return int(min((limit for limit in limits if limit is not None), default=_UNLIMITED))

    def check(self, label: str, reads: Reading, form: str) -> None:
        """Raise InputError if the model has no such label or form of scores, or no chat template to read by."""
        if self.model.config.num_labels == 1:
            if form == "logprob":
                raise InputError('form = "logprob": the model has one output, a score and no probability: remove form')
            if label and label != self.labels[0]:
                raise InputError(f"label = '{label}': the model has one output, a score: remove label")
        elif label not in self.labels:
            problem = f"label = '{label}'{nearest(label, self.labels)}" if label else "label is not set"
            raise InputError(f"{problem}: must be one of the model's labels: {', '.join(self.labels)}")
        if reads == "chat" and not self.chat.source:
            raise InputError(
                'reads = "chat": the model has no chat template: set "pair" if it judges a completion with its prompt, '
                'or "completion" if it judges a text alone'
            )

    def probe(self) -> None:
        """Raise ValueError if the model's labels do not name its outputs, or a short text's outputs are not finite."""
        names = self.model.config.id2label
        if not isinstance(names, Mapping) or set(names) != set(range(self.model.config.num_labels)):
            raise ValueError(f"config.json: id2label = {names!r:.100} does not name its outputs from 0 on")
        inputs = self._encode_texts(["a"])
        if inputs["input_ids"] and not self.logits([inputs]).isfinite().all():
            raise ValueError("its outputs are not finite: config.json does not fit its weights")

    @torch.no_grad()
    def logits(self, texts: Sequence[Mapping[str, Sequence[int]]]) -> Tensor:
        """Return the outputs [N, labels] of encoded texts, float64, on the CPU; texts of one length are one batch."""
        lengths: dict[int, list[int]] = {}
        for index, text in enumerate(texts):
            lengths.setdefault(len(text["input_ids"]), []).append(index)
        # Without a padding token, decoder models take one text at a time.
        most = 1 if getattr(self.model.config.get_text_config(), "pad_token_id", None) is None else BATCH
        result = torch.zeros(len(texts), self.model.config.num_labels, dtype=torch.float64)
        for equal in lengths.values():
            for start in range(0, len(equal), most):
                some = equal[start : start + most]
                inputs = {
                    name: torch.tensor([list(texts[index][name]) for index in some], device=self.model.device)
                    for name in texts[some[0]]
                }
                result[some] = self.model(**inputs).logits.double().cpu()
        return result

    def scores(self, logits: Tensor, label: str, form: Literal["probability", "logprob"]) -> list[float]:
        """Return the scores [N]: of a model with one output, that; of others, the label's probability or its log."""
        if self.model.config.num_labels == 1:
            return [float(value) for value in logits[:, 0]]
        own = logits[:, self.labels.index(label)]
        several = self.model.config.problem_type == "multi_label_classification"
        logprobs = nn.functional.logsigmoid(own) if several else own - logits.logsumexp(1)
        return [float(value) for value in (logprobs if form == "logprob" else logprobs.exp())]

    def encode_completion(
        self, completion: Completion, reads: Reading, overlong: Overlong, max_tokens: int
    ) -> tuple[dict[str, list[int]], bool]:
        """Return what the model reads of a completion, and whether it was cut.

        Control tokens inside the prompt or the completion are text.

        Args:
            max_tokens: limit below the model's own; 0 for that.

        Raises:
            InputError: the text is too long and ``overlong`` is "refuse", or the chat template refuses the conversation.
        """
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        if reads == "chat":
            ids = self._encode_chat(completion)
            cut = len(ids) > limit
            kept = ids[-limit:] if overlong == "left" else ids[:limit]
            inputs = {"input_ids": kept, "attention_mask": [1] * len(kept)}
            length = len(ids)
        else:
            texts = (
                [completion.text] if reads == "completion" else [untemplated_text(completion.prompt), completion.text]
            )
            inputs = self._encode_texts(texts)
            length = len(inputs["input_ids"])
            cut = length > limit
            if cut:
                self.tokenizer.truncation_side = "left" if overlong == "left" else "right"
                inputs = self._encode_texts(texts, truncation="longest_first", max_length=limit)
        if cut and overlong == "refuse":
            raise InputError(
                f"a completion of prompt '{completion.prompt.id}' has {length} tokens, and the classifier reads {limit}: "
                'set overlong = "left" or "right" to cut texts at that side, or lower sampling.max_new_tokens'
            )
        if not inputs["input_ids"]:
            raise InputError(f"a completion of prompt '{completion.prompt.id}' has no tokens that the classifier reads")
        return inputs, cut

    def _encode_texts(self, texts: Sequence[str], **cut: Any) -> dict[str, list[int]]:
        # The tokenizer refuses half a surrogate pair, as of an emoji cut off at the token limit.
        whole = [[text.encode("utf-8", "replace").decode("utf-8")] for text in texts]
        tokenizer: Any = self.tokenizer
        # As a batch of one: outside a batch, a pair with an empty text is encoded as a single text.
        encoded = tokenizer(*whole, split_special_tokens=True, verbose=False, **cut)
        return {name: rows[0] for name, rows in encoded.items()}

    def _encode_chat(self, completion: Completion) -> list[int]:
        prompt, broken = completion.prompt, self.controls.broken
        asked = prompt.messages or (Message("user", prompt.text),)
        messages = [replace(one, content=broken(one.content), reasoning=broken(one.reasoning)) for one in asked]
        messages.append(Message("assistant", broken(completion.text, answer=True)))
        try:
            text = self.chat.text(messages, begin_answer=False)
        except ValueError as error:
            raise InputError(f"prompt '{prompt.id}': the classifier's chat template refuses it ({error})") from error
        return list(self.encode_rendered(text.encode("utf-8", "replace").decode("utf-8")))


def load_classifier(source: str, *, offline: bool = False) -> SequenceClassifier:
    """Load a frozen classifier from a folder or a hub id, from safetensors only, in float32.

    Raises InputError if it cannot be loaded or its files lack weights: transformers would only warn of a head that it
    initialises at random.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.peft_utils import find_adapter_config_file

    path = resolve_model(source, offline=offline)
    with loading_errors(source), quiet_transformers():
        if find_adapter_config_file(str(path), local_files_only=offline) is not None:
            raise ValueError("it is an adapter: merge it with peft's merge_and_unload, save the model, and name that")
        model, loading = construct(AutoModelForSequenceClassification, path, torch.float32, offline=offline)
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(
                f"its files lack {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}, as those of a model "
                "without a trained classification head do: name a checkpoint that was trained to classify or to score"
            )
        tokenizer, _ = load_tokenizer(Path(path) if isinstance(path, Path) else path, offline=offline)
        check_token_rows(model, tokenizer)
        refuse_broken_weights(model, source)
    check_chat(tokenizer, None, source)
    model.eval().requires_grad_(False).to(resolve_device("auto"))
    classifier = SequenceClassifier(model, tokenizer)
    with loading_errors(source):
        classifier.probe()
    return classifier
