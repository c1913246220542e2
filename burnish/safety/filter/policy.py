"""FilterPolicy of the content filter: what each category leads to, read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from burnish.errors import InputError
from burnish.recipe.reading import validate
from burnish.registry import nearest
from burnish.safety.filter.verdict import Action
from burnish.system.parsing import given_text, toml_of

CATEGORIES: Mapping[str, tuple[Action, str]] = {
    "profanity": ("flag", "swear words and insults"),
    "slur": ("block", "words that demean a group"),
    "sexual": ("flag", "sexual words"),
    "violence": ("flag", "threats, calls to suicide"),
    "email": ("flag", "e-mail addresses"),
    "phone": ("flag", "phone numbers"),
    "identity": ("block", "Chinese resident ID with its check digit, US social security number"),
    "card": ("block", "payment cards with their check digit"),
    "secret": ("block", "API keys, tokens and private keys"),
    "toxicity": ("flag", "the classifiers' score"),
    "harm": ("flag", "texts like the unsafe answers of the file in found"),
}
"""Category -> its default action and what is in it."""

INNOCENT = (
    "bastard cabbage", "bastard file", "bastard title", "fire retardant", "maine coon", "moby dick", "pussy cat",
    "pussy willow", "retard the", "spic and span", "spic n span", "wild ass",
    "出口交", "进口交", "路口交", "港口交", "窗口交", "门口交", "入口交", "接口交", "人口交", "渡口交",
)  # fmt: skip
"""Phrases in which the word lists are not applied, whatever the policy."""

Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CategoryRule(_Table):
    """One ``[categories.NAME]`` table."""

    action: Action | None = Field(None, description='"allow", "flag" or "block"')
    threshold: float = Field(0.5, ge=0, le=1, description="least score of a finding that counts")
    words: list[Text] = Field([], description="words and phrases of your own, in addition to the lists")


class ModelRule(_Table):
    """The ``[model]`` table: a layer of your own."""

    use: str = Field(description="module:object, a function of a text that returns category -> score, from 0 to 1")
    categories: list[Text] = Field([], description="categories that it returns, besides burnish's own")


class FilterPolicy(_Table):
    """A policy with its defaults."""

    allow: list[Text] = Field([], description="phrases in which nothing is reported")
    classifier: StrictBool = Field(False, description="whether the classifiers are asked too")
    found: Text | None = Field(
        None, description="file of `burnish redteam --export` to learn from; relative to the policy's folder"
    )
    categories: dict[str, CategoryRule] = Field({}, description="category -> its rule")
    model: ModelRule | None = Field(None, description="a layer of your own")

    def known(self) -> list[str]:
        """Return the names of all categories of this policy."""
        return [*CATEGORIES, *(self.model.categories if self.model else ())]

    def action(self, category: str) -> Action:
        """Return what a category leads to."""
        chosen = self.categories[category].action if category in self.categories else None
        return chosen or (CATEGORIES[category][0] if category in CATEGORIES else "flag")

    def threshold(self, category: str) -> float:
        """Return the least score that counts in a category."""
        return self.categories[category].threshold if category in self.categories else 0.5


DEFAULT = FilterPolicy()


def read_policy(source: str | Path | Mapping[str, Any] | FilterPolicy | None) -> FilterPolicy:
    """Return a policy from a TOML file or a mapping; None, "" and "default" are the default policy.

    Raises InputError if the file cannot be read, or a key, category or value is not valid.
    """
    if isinstance(source, FilterPolicy):
        return source
    if source is None or source in ("", "default"):
        return DEFAULT
    table, where = (dict(source), "policy") if isinstance(source, Mapping) else (_read(Path(source)), str(source))
    policy = validate(FilterPolicy, table, where)
    if policy.found and not isinstance(source, Mapping):
        from burnish.system.paths import expanded

        found = expanded(source).parent / expanded(policy.found)
        policy = policy.model_copy(update={"found": str(found)})
    for name, rule in policy.categories.items():
        # A category of the user's own needs words, or a model that returns it.
        if name not in policy.known() and not rule.words:
            raise InputError(
                f"{where}: unknown category '{name}'{nearest(name, policy.known())}; known: "
                f"{', '.join(policy.known())}; a category of your own needs words, or to be listed in model.categories"
            )
    return policy


def _read(path: Path) -> dict[str, Any]:
    from burnish.system.paths import expanded

    try:
        return toml_of(given_text(expanded(path), encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"policy '{path}' cannot be read: {error.strerror}; name a TOML file or 'default'") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
