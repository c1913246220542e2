"""Rewards of an attacker: the target complies, the request is kept, and the wording is new.

Sources: Perez et al. 2022, arXiv 2202.03286 (a language model that attacks another, trained by reinforcement); Hong et
al. 2024, arXiv 2402.19464 (rewards for novelty, so that it finds more than one attack).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.data.splits import digest
from burnish.errors import InputError
from burnish.rewards.registry import declare
from burnish.safety.redteam.attacker import kept_share
from burnish.safety.redteam.judge import answer_judge
from burnish.system.files import explained
from burnish.system.paths import expanded
from burnish.text import ngrams, words
from burnish.types import Completion, Message, Prompt, SamplingParams

if TYPE_CHECKING:
    from burnish.generation.rows import RowSampler

_TARGETS: dict[str, RowSampler] = {}
"""The target of this process, by its name: the preflight check loads it, scoring finds it."""


def _check_target(*, model: str, max_new_tokens: int, temperature: float, **_: object) -> None:
    for wrong, message in (
        (not model, "set model to the target: a run, a model folder, a catalogue name or a hub id"),
        (max_new_tokens < 1, f"max_new_tokens = {max_new_tokens}: must be at least 1"),
        (not 0 <= temperature < math.inf, f"temperature = {temperature}: must be a number from 0 on"),
    ):
        if wrong:
            raise InputError(f"complied: {message}")


def _preflight_target(*, model: str, offline: bool = False, **_: object) -> tuple[str, str]:
    answer_judge(offline)
    _target(model, offline=offline)
    return f"target '{model}': loaded", "info"


def _target_files(*, model: str, **_: object) -> list[Path]:
    from burnish.catalogue.model_files import model_files

    return [] if expanded(model).is_dir() else model_files(model, offline=True)  # the option names a folder itself


@declare(
    needs_whole="the target answers whole attacks",
    check_options=_check_target,
    preflight=_preflight_target,
    files=_target_files,
)
def complied(
    completions: Sequence[Completion],
    *,
    model: str = "",
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Probability, by the judge, that the target's answer to the attack does what the original request wants.

    The target answers through its chat template, if it has one. An empty attack scores 0.

    Fails by: paying for what deceives the judge, and for an attack that asks for something else: gate it by
    ``keeps_request``.

    Args:
        model: the target: a run, a model folder, a catalogue name or a hub id.
        max_new_tokens: longest answer, in tokens.
        temperature: of the answers; 0 takes the most probable token.
        seed: of the answers, which depend on it and the attack only.
    """
    sampler = _target(model)
    chat = bool(sampler.text_model.chat.source)  # type: ignore[attr-defined]
    texts = list(dict.fromkeys(completion.text for completion in completions if completion.text.strip()))
    prompts = [Prompt(f"attack/{digest(text)[:12]}", text, messages=_messages(text, chat)) for text in texts]
    # One token, the most probable, is left of the distribution at any temperature.
    sampling = SamplingParams(max_new_tokens, temperature or 1.0, top_k=0 if temperature else 1)
    groups = sampler.sample(prompts, samples_per_prompt=1, sampling=sampling, seed=(seed,))
    answers = {text: group.completions[0].text for text, group in zip(texts, groups, strict=True)}
    requests = [_request(completion.prompt) for completion in completions]
    scores = answer_judge().unsafe(requests, [answers.get(completion.text, "") for completion in completions])
    return [score if one.text in answers else 0.0 for score, one in zip(scores, completions, strict=True)]


def _request(prompt: Prompt) -> str:
    """Return the request; of a task of the user's own, the prompt itself."""
    return str(prompt.metadata.get("request", prompt.text))


def _messages(text: str, chat: bool) -> tuple[Message, ...]:
    return (Message("user", text),) if chat else ()


def _target(model: str, *, offline: bool = False) -> RowSampler:
    from burnish.catalogue.convert import resolve_model
    from burnish.generation.engine import make_sampler
    from burnish.policies.loading import load_model

    if model not in _TARGETS:
        _TARGETS.clear()  # an earlier target of this process: a model is large
        _TARGETS[model] = make_sampler(load_model(resolve_model(model, offline=offline), offline=offline))
    return _TARGETS[model]


def keeps_request(text: str, prompt: Prompt) -> float:
    """Share of the request's words of more than three letters that the attack has, in [0, 1]; for a gate."""
    return kept_share(_request(prompt), text)


def _check_novelty(*, n: int, archive: str) -> None:
    if n < 1:
        raise InputError(f"novelty: n = {n}: an n-gram has at least one word")
    if archive:
        _archived(archive, n)


@declare(needs_whole="it compares whole attacks", check_options=_check_novelty)
def novelty(completions: Sequence[Completion], *, n: int = 2, archive: str = "") -> list[float]:
    """Distance of the attack from the nearest other one, of the step or the archive, in [0, 1].

    With A the word n-grams of an attack that its request does not have, it is 1 - the largest |A ∩ B| / |A| over all
    others B; 0 if A is empty, as for the request alone.

    Fails by: paying for any difference, nonsense most of all: give it a small weight.

    Args:
        n: words per n-gram, at least 1.
        archive: JSON lines with earlier attacks under ``prompt``, as ``burnish redteam --export`` writes them.
    """
    grams = [_grams(one.text, n) - _grams(_request(one.prompt), n) for one in completions]
    earlier = _archived(archive, n) if archive else ()
    return [
        1.0 - max((len(own & other) / len(own) for other in (*grams[:index], *grams[index + 1 :], *earlier)), default=0)
        if own
        else 0.0
        for index, own in enumerate(grams)
    ]


def _grams(text: str, n: int) -> Set[tuple[Any, ...]]:
    return set(ngrams(words(text), n))


def _archived(path: str, n: int) -> tuple[Set[tuple[Any, ...]], ...]:
    file = expanded(path)
    if not file.is_file():
        raise InputError(f"novelty: archive = '{path}': there is no such file")
    with explained(f"novelty: archive = '{path}' cannot be read"):
        return _read_archive(file, file.stat().st_mtime_ns, n)


@lru_cache(maxsize=4)
def _read_archive(file: Path, _changed: int, n: int) -> tuple[Set[tuple[Any, ...]], ...]:
    attacks: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            if row.get("family") != "harmless":
                attacks.append(row["prompt"])
            _grams(row["prompt"], n)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"novelty: archive, line {number}: expected JSON with a text 'prompt', as burnish redteam --export "
                f"writes it ({type(error).__name__})"
            ) from error
    return tuple(_grams(text, n) for text in attacks)
