"""The content filter: its layers, applied to one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError, ContractError, InputError, one_line
from burnish.registry import import_object, nearest
from burnish.safety.filter.lexicon import CLEAR, Term, folded, terms
from burnish.safety.filter.normalise import fold
from burnish.safety.filter.patterns import PatternLayer
from burnish.safety.filter.pinyin import pinyin_terms
from burnish.safety.filter.policy import INNOCENT, FilterPolicy, read_policy
from burnish.safety.filter.verdict import ACTIONS, ALLOWED, FilterVerdict, TextFinding, redact, without_repeats
from burnish.safety.filter.words import WordLayer

Score = Callable[[str], Mapping[str, float]]


class ContentFilter:
    """Finder of unwanted text by word lists, patterns, and optionally classifiers and a model of your own.

    Args:
        policy: a TOML file, a mapping of its keys, or a ``FilterPolicy``; None is the default policy.

    Raises InputError if the policy is not valid, or a package of the extra ``safety`` is missing.
    """

    def __init__(self, policy: str | Path | Mapping[str, Any] | FilterPolicy | None = None) -> None:
        self.policy = read_policy(policy)
        own = [
            Term(_visible(word, f"categories.{category}.words"), category, CLEAR)
            for category, rule in self.policy.categories.items()
            for word in rule.words
        ]
        allowed = [_visible(phrase, "allow") for phrase in self.policy.allow]
        self.words = WordLayer([*terms(), *pinyin_terms(), *own], [*allowed, *INNOCENT])
        self.patterns = PatternLayer()
        self._scorers: list[tuple[str, Score]] = []
        if self.policy.classifier:
            from burnish.safety.filter.classifier import prepare_classifiers, toxicity_scores

            prepare_classifiers()
            self._scorers.append(("classifier", toxicity_scores))
        if self.policy.found:
            from burnish.safety.filter.found import found_classifier

            self._scorers.append(("found", found_classifier(self.policy.found).scores))
        if self.policy.model:
            self._scorers.append(("model", _function(self.policy.model.use)))

    @property
    def judges_whole_texts(self) -> bool:
        """Whether a layer judges whole texts, so that no part of one is settled before its end."""
        return bool(self._scorers)

    def check(self, text: str) -> FilterVerdict:
        """Return the verdict on a text. Spans are indices of the text as it was passed."""
        normalised = fold(text)
        findings = [*self.words.find(normalised), *self.patterns.find(normalised)]
        if findings:
            allowed = self.words.allowed(normalised)
            findings = [
                one for one in findings if not any(start <= one.start and one.end <= end for start, end in allowed)
            ]
        for layer, score in self._scorers:
            findings += self._whole(text, layer, score)
        return self._verdict(findings) if findings else ALLOWED

    def redact(self, text: str) -> str:
        """Return the text with its findings replaced by their categories in brackets."""
        return redact(text, self.check(text).findings)

    def _whole(self, text: str, layer: str, score: Score) -> list[TextFinding]:
        """Return the findings of a layer that judges the whole text."""
        if not text.strip():
            return []
        try:
            values = score(text)
        except BurnishError:
            raise
        except Exception as error:
            raise BurnishError(f"filter {layer} raised {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(values, Mapping):
            raise ContractError(f"filter model returned {type(values).__name__}: it must return category -> score")
        known = [*self.policy.known(), *self.policy.categories]
        for name, value in values.items():
            if name not in known:
                raise ContractError(
                    f"filter model returned the category '{name}'{nearest(str(name), known)}; add it to model.categories"
                )
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ContractError(f"filter model returned {name} = {value!r}: must be a number from 0 to 1")
        return [TextFinding(name, 0, len(text), float(value), layer) for name, value in values.items()]

    def _verdict(self, findings: list[TextFinding]) -> FilterVerdict:
        policy = self.policy
        counted = [
            one
            for one in findings
            if one.score >= policy.threshold(one.category) and policy.action(one.category) != "allow"
        ]
        if not counted:
            return ALLOWED
        counted = without_repeats(counted)
        actions = {one.category: policy.action(one.category) for one in counted}
        severest = max(actions.values(), key=ACTIONS.index)
        decisive = max((one for one in counted if actions[one.category] == severest), key=lambda one: one.score)
        blocked = frozenset(category for category, action in actions.items() if action == "block")
        return FilterVerdict(severest, tuple(counted), decisive, blocked)


def _visible(phrase: str, key: str) -> str:
    """Return a policy's phrase as texts are compared with it. Raises InputError if nothing of it is left."""
    text = folded(phrase).strip()
    if not text:
        raise InputError(f"{key}: {phrase!r} has no visible character: remove it")
    return text


def _function(path: str) -> Score:
    function = import_object(path, "filter model") if ":" in path else None
    if not callable(function):
        raise InputError(f"model.use = '{path}': must be module:object, a function of a text")
    return function


@lru_cache(maxsize=8)
def load_filter(policy: str = "") -> ContentFilter:
    """Return the filter of a policy file, cached; "" and "default" are the default policy."""
    return ContentFilter(policy)
