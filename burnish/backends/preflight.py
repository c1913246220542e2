"""Checks of a recipe against its prompts, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from burnish.errors import InputError
from burnish.policies.vocabulary import refuse_messages
from burnish.protocols import Observer
from burnish.recipe.schema import Recipe
from burnish.rewards.registry import REWARDS
from burnish.text import mostly_han_or_kana
from burnish.types import Prompt

if TYPE_CHECKING:
    pass


def check_prompts(
    recipe: Recipe, train: Sequence[Prompt], held_out: Sequence[Prompt] = (), observer: Observer | None = None
) -> None:
    """Raises InputError where a prompt is nothing for the policy or for a reward: before a model is loaded, or made."""
    check_references(recipe, train, held_out)
    check_languages(recipe, [*train, *held_out], observer)
    if recipe.policy.use in ("lstm", "module"):
        for prompt in (*train, *held_out):
            refuse_messages(prompt)


def check_languages(recipe: Recipe, prompts: Sequence[Prompt], observer: Observer | None = None) -> None:
    """Raises InputError where a reward or a metric knows English only and most references are
    Chinese or Japanese. Where prompts are and references are not there, a warning: the answers may be English."""
    references = [prompt.reference for prompt in prompts if prompt.reference is not None]
    texts = references or [prompt.text for prompt in prompts]
    if 2 * sum(map(mostly_han_or_kana, texts)) <= len(texts):
        return
    for key, sections in (("reward", recipe.reward), ("evaluation.metrics", recipe.evaluation.metrics)):
        for index, section in enumerate(sections):
            reward = REWARDS.get(section.use)
            if not reward.english_only(section.options):
                continue
            what = "references" if references else "prompts"
            said = f"{key}.{index}: '{section.use}' knows English only, and most {what} of task '{recipe.task.use}' are not"
            if references:
                other = ", or name a model that knows their language" if "model" in reward.options else ""
                raise InputError(f"{said}: leave it out{other}")
            if observer is not None:
                observer.message(f"{said}: answers that are not English score about 0", level="warning")


def check_references(recipe: Recipe, train: Sequence[Prompt], held_out: Sequence[Prompt] = ()) -> None:
    """Raises InputError where a reward or a metric says that it needs a reference and a
    prompt that it shall judge has none: before a model is loaded, not when the first sample is scored."""
    for key, sections, prompts in (
        ("reward", recipe.reward, [*train, *held_out]),
        ("evaluation.metrics", recipe.evaluation.metrics, held_out),
    ):
        without = [prompt for prompt in prompts if prompt.reference is None or not prompt.reference.strip()]
        for index, section in enumerate(sections):
            if without and REWARDS.get(section.use).facts.needs_reference:
                more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
                raise InputError(
                    f"{key}.{index}: '{section.use}' needs a reference, but prompt '{without[0].id}'{more} of task "
                    f"'{recipe.task.use}' has none: leave this {key.rpartition('.')[2].removesuffix('s')} out, or give "
                    "the task's prompts references"
                )


def check_companions(recipe: Recipe) -> None:
    """Raises InputError where a reward or a metric compares the samples of one prompt and
    there is one: it would have the same value for any text."""
    trained, held_out = recipe.sampling.samples_per_prompt, recipe.evaluation.samples_per_prompt
    for section, samples in (
        *((section, {"sampling": trained, "evaluation": held_out}) for section in recipe.reward),
        *((section, {"evaluation": held_out}) for section in recipe.evaluation.metrics),
    ):
        alone = [f"{key}.samples_per_prompt" for key, count in samples.items() if count < 2]
        if alone and REWARDS.get(section.use).facts.needs_companions:
            raise InputError(
                f"'{section.use}' compares the samples of one prompt, and there is one: {' and '.join(alone)} must be at "
                "least 2"
            )


def say_walls(recipe: Recipe, observer: Observer | None = None) -> None:
    """Has rewards that hang on something outside (a sandbox, another model's address) look for it before
    a model is loaded, and says what they found. Raises BurnishError where they cannot work."""
    said = set()
    for section in (*recipe.reward, *recipe.evaluation.metrics):
        message = REWARDS.get(section.use).preflight(section.options)
        if message is not None:
            said.add(message)
    if observer is not None:
        for text, level in sorted(said):
            observer.message(text, level=level)
