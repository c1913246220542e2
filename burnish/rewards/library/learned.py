"""Rewards of trained models: burnish's own reward models, and sequence classifiers of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.errors import InputError
from burnish.rewards.registry import check_choice, reward
from burnish.types import Completion

if TYPE_CHECKING:
    from burnish.policies.classifier import SequenceClassifier
    from burnish.policies.reward_model import RewardModel


def _check(*, path: str) -> None:
    from burnish.policies.reward_model import find_model_folder  # slow: it loads torch

    find_model_folder(path)


@reward(check_options=_check)
def reward_model(completions: Sequence[Completion], *, path: str = "") -> list[float]:
    """Score of a reward model trained by `burnish reward-model`; unbounded, and only differences are meaningful.

    The reward model's own tokenizer reads the texts. Each prompt is processed once for all its completions, unpadded.

    Fails by: being a model of finitely many comparisons. A policy finds texts unlike any of them that score high for no
    good reason, the sooner the further it moves from its start: keep a KL term, watch a metric that is not trained on,
    and read samples. Check their lengths first.

    The difference of two rewards is the log-odds that the first is preferred, as far as the model is calibrated
    (``calibration.json`` of its run). ``path`` is a run folder of `burnish reward-model`, or the folder of its model.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, section 3.5; Gao et al. 2022, arXiv 2210.10760
    (how its optimisation fails).
    """
    from burnish.policies.reward_model import find_model_folder

    return _loaded(str(find_model_folder(path).resolve())).score_texts(completions)


@lru_cache(maxsize=2)
def _loaded(folder: str) -> RewardModel:
    """Return the model, cached between steps: it is frozen, and so is the folder behind a resolved link."""
    from burnish.policies.reward_model import load_reward_model

    return load_reward_model(folder)


def _check_classifier(*, model: str, form: str, reads: str, overlong: str, max_tokens: int, **_: object) -> None:
    if not model:
        raise InputError("classifier: set model to a folder, or a hub id, of a sequence classifier of transformers")
    check_choice("classifier", "form", form, ("probability", "logprob"))
    check_choice("classifier", "reads", reads, ("chat", "pair", "completion"))
    check_choice("classifier", "overlong", overlong, ("left", "right", "refuse"))
    if max_tokens < 0:
        raise InputError(f"classifier: max_tokens = {max_tokens}: must be at least 1, or 0 for the model's own limit")


def _preflight_classifier(
    *, model: str, label: str, form: Any, reads: Any, max_tokens: int, offline: bool = False, **_: object
) -> tuple[str, str]:
    """Load the model, and check what is asked of it. Raises InputError."""
    classifier = _classifier(model, label, reads, form, offline=offline)
    limit = min(max_tokens or classifier.max_tokens, classifier.max_tokens)
    measured = f"the label '{label}'" if label else "its score"
    return f"classifier '{model}': {measured}, reads = \"{reads}\", up to {limit} tokens", "info"


def _classifier_files(*, model: str, **_: object) -> list[Path]:
    from burnish.catalogue.model_files import model_files
    from burnish.system.paths import expanded

    return [] if expanded(model).is_dir() else model_files(model, offline=True)  # the option names a folder itself


@reward(check_options=_check_classifier, preflight=_preflight_classifier, files=_classifier_files)
def classifier(
    completions: Sequence[Completion],
    log_count: Callable[[str, float], None],
    *,
    model: str = "",
    label: str = "",
    form: Any = "probability",
    reads: Any = "chat",
    overlong: Any = "left",
    max_tokens: int = 0,
) -> list[float]:
    """Score of a sequence classifier of transformers: its one output, or the probability of one of its labels.

    A model with one output was trained to score texts (a regression or Bradley-Terry head): its score is unbounded.
    The number of texts that were cut is logged as ``overlong``.

    Fails by: being a model of finitely many texts. A policy finds others that score high for no good reason, such as
    words of the wanted label in any order, and a text that is read alone need not answer its prompt.

    Args:
        model: folder or hub id of a ``*ForSequenceClassification`` model, with safetensors and a trained head.
        label: the label whose probability counts; of a model with one output, none.
        form: "probability" from 0 to 1, or "logprob", its logarithm.
        reads: "chat", the conversation by the model's own chat template; "pair", prompt and completion as two texts;
            or "completion" alone.
        overlong: the side that a text loses if it is too long, "left" or "right"; "refuse" ends the run.
        max_tokens: longest text; 0 is the model's own limit.

    Source: Ouyang et al. 2022, arXiv 2203.02155, section 3.5 (a score for prompt and completion).
    """
    network = _classifier(model, label, reads, form)
    encoded = [network.encode_completion(completion, reads, overlong, max_tokens) for completion in completions]
    log_count("overlong", sum(cut for _, cut in encoded))
    return network.scores(network.logits([inputs for inputs, _ in encoded]), label, form)


_CLASSIFIERS: dict[str, SequenceClassifier] = {}
"""Models of this process by folder or hub id: preflight loads them, scoring finds them."""


def _classifier(model: str, label: str, reads: Any, form: str, *, offline: bool = False) -> SequenceClassifier:
    from burnish.policies.classifier import load_classifier
    from burnish.system.paths import expanded

    folder = expanded(model)
    key = str(folder.resolve()) if folder.is_dir() else model
    try:
        if key not in _CLASSIFIERS:
            _CLASSIFIERS[key] = load_classifier(key, offline=offline)
        _CLASSIFIERS[key].check(label, reads, form)
    except InputError as error:
        raise InputError(f"classifier: {error}") from error
    return _CLASSIFIERS[key]
