"""Scoring of given texts with rewards: ``burnish.score``. It loads torch only for rewards that need a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from burnish.errors import InputError
from burnish.protocols import Observer
from burnish.registry import nearest
from burnish.rewards.combine import Combination
from burnish.rewards.given import Rewards, register_given
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS
from burnish.text import mostly_han_or_kana
from burnish.types import Completion, Prompt


def score(
    texts: Sequence[str],
    *,
    rewards: Rewards,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    prompt: str = "",
    reference: str | Sequence[str] | None = None,
    model: str = "smollm2-135m",
    offline: bool = False,
    observer: Observer | None = None,
) -> list[dict[str, Any]]:
    """Score each text, as a completion of ``prompt``, with each reward.

    Args:
        rewards: a reward's name or function, or several.
        options: reward -> its options, such as ``{"regex": {"pattern": "[0-9]+"}}``.
        reference: the correct answer, or several: the best value counts, as in training.
        model: the reference model; it is loaded only if a reward needs one.

    Returns one dict per text: its ``text`` and its ``parts``, reward -> value. Raises InputError if a reward is unknown
    or cannot score these texts.
    """
    names = [name for name, _ in register_given(rewards)]
    settings: dict[str, Mapping[str, Any]] = {name: {} for name in names} | dict(options or {})
    for name in options or {}:
        if name not in names:
            raise InputError(
                f"options for '{name}'{nearest(name, names)}, which is not among the rewards; add it to the rewards"
            )
    references = [reference] if isinstance(reference, str) else list(reference or ())
    for name in names:
        _check_scorable(name, settings[name], texts, references)
    policy = None
    if any("reference_policy" in REWARDS.get(name).arguments for name in names):
        from burnish.catalogue.convert import resolve_model
        from burnish.policies.loading import load_model
        from burnish.reports.terminal.progress import watching

        with watching(observer) as watcher:
            source = resolve_model(model, offline=offline, observer=watcher)
            policy = load_model(source, offline=offline, observer=watcher)
    shared = Prompt("prompt", prompt, references[0] if references else None, alternatives=tuple(references[1:]))
    prompt_ids = policy.encode_prompt(shared) if policy else ()
    completions = [
        Completion(shared, prompt_ids, policy.encode(text, begins=not prompt) if policy else (), text, (), "stop")
        for text in texts
    ]
    parts = [Part(name.rpartition(":")[2], REWARDS.get(name), options=settings[name]) for name in names]
    values = Combination(parts, policy).values(completions)
    return [
        {"text": text, "parts": {name: None if isnan(row[index]) else row[index] for name, row in values.items()}}
        for index, text in enumerate(texts)
    ]


def _check_scorable(name: str, options: Mapping[str, Any], texts: Sequence[str], references: Sequence[str]) -> None:
    entry = REWARDS.get(name)
    entry.check_options(options, beside=())
    if entry.needs_reference(options) and not (references and all(map(str.strip, references))):
        raise InputError(f"'{name}' needs a reference; pass --reference TEXT or reference=...")
    if not entry.english_only(options):
        return
    for number, text in enumerate([*texts, *references], start=1):
        if mostly_han_or_kana(text):
            which = "the reference" if number > len(texts) else f"text {number}"
            raise InputError(f"'{name}' supports only English, but {which} is Chinese or Japanese; remove one of them")
