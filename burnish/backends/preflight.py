"""Checks of a recipe against its prompts, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

from burnish.backends.vllm_environment import check_vllm
from burnish.errors import InputError
from burnish.named_code import before_program, withholds_code
from burnish.policies.vocabulary import refuse_messages
from burnish.protocols import Observer
from burnish.recipe.backend import BackendSection
from burnish.recipe.schema import Recipe
from burnish.registry import nearest
from burnish.rewards.forms import missing_columns
from burnish.rewards.registry import REWARDS
from burnish.text import mostly_han_or_kana
from burnish.types import Prompt

SHARD_TORCH = (2, 13)
"""The first version of torch whose FSDP2 and sharded safetensors were tried."""


def check_backend_package(recipe: Recipe) -> None:
    """Raise InputError if the recipe's backend needs a package that is not installed; it is not loaded."""
    if recipe.backend.use == "ray" and find_spec("ray") is None:
        raise InputError("backend.use = \"ray\" needs a package that is not installed: pip install 'burnish[ray]'")
    if recipe.backend.shard and tuple(map(int, version("torch").split(".")[:2])) < SHARD_TORCH:
        needed = ".".join(map(str, SHARD_TORCH))
        raise InputError(
            f"backend.shard needs torch {needed} or later, and {version('torch')} is installed: upgrade torch"
        )
    asks = recipe.backend.python is not None and not withholds_code()
    if recipe.backend.engine == "vllm" and recipe.backend.address is None and (asks or recipe.backend.python is None):
        check_vllm(recipe.backend.python)


def check_backend_trust(backend: BackendSection) -> None:
    """Raise InputError if a program or a cluster that a recipe names may not be used: both can run anything as the user.

    "auto" is the cluster that this program is a part of.
    """
    if backend.python is not None:
        before_program("backend.python", backend.python, "is a program that runs the samplers")
    if backend.address not in (None, "auto"):
        before_program("backend.address", str(backend.address), "is a cluster that can run programs as you")


def check_prompts(
    recipe: Recipe, train: Sequence[Prompt], held_out: Sequence[Prompt] = (), observer: Observer | None = None
) -> None:
    """Raise InputError if the policy or a reward cannot use a prompt."""
    check_references(recipe, train, held_out)
    check_columns(recipe, [*train, *held_out])
    check_languages(recipe, [*train, *held_out], observer)
    if recipe.policy.use in ("lstm", "module"):
        for prompt in (*train, *held_out):
            refuse_messages(prompt)


def check_languages(recipe: Recipe, prompts: Sequence[Prompt], observer: Observer | None = None) -> None:
    """Raise InputError if a reward or metric reads English only and most references are Chinese or Japanese.

    Without references the prompts decide, and this is only a warning, since the answers may be English.
    """
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
            name = f"{key}.{index}: '{section.use}'"
            problem = f"{name} reads English only, but most {what} of task '{recipe.task.use}' are not"
            if references:
                other = ", or name a model that knows their language" if "model" in reward.options else ""
                raise InputError(f"{problem}: remove it{other}")
            if observer is not None:
                observer.message(f"{problem}: answers in other languages score about 0", level="warning")


def check_references(recipe: Recipe, train: Sequence[Prompt], held_out: Sequence[Prompt] = ()) -> None:
    """Raise InputError if a reward or metric needs a reference and a prompt that it scores has none."""
    for key, sections, prompts in (
        ("reward", recipe.reward, [*train, *held_out]),
        ("evaluation.metrics", recipe.evaluation.metrics, held_out),
    ):
        without = [each for each in prompts if not each.references or not all(map(str.strip, each.references))]
        for index, section in enumerate(sections):
            if without and REWARDS.get(section.use).needs_reference(section.options):
                count = f"{len(without)} prompt{'s' if len(without) > 1 else ''}"
                kind = key.rpartition(".")[2].removesuffix("s")
                raise InputError(
                    f"{key}.{index}: '{section.use}' needs a reference, but {count} of task '{recipe.task.use}' "
                    f"{'have' if len(without) > 1 else 'has'} none, such as '{without[0].id}': give them references, "
                    f"or remove this {kind}"
                )


def check_columns(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Raise InputError if a function in TRL's or verl's form needs a column that a prompt does not have."""
    for key, sections in (("reward", recipe.reward), ("evaluation.metrics", recipe.evaluation.metrics)):
        for index, section in enumerate(sections):
            for column, prompt in missing_columns(REWARDS.get(section.use).signature, prompts).items():
                known = [*prompt.metadata, *(["reference"] if prompt.reference is not None else [])]
                raise InputError(
                    f"{key}.{index}: '{section.use}' takes '{column}', but prompt '{prompt.id}' of task "
                    f"'{recipe.task.use}' has no such column{nearest(column, known)}; it has "
                    f"{', '.join(known) or 'none'}: rename the argument, or give it a default"
                )


def check_companions(recipe: Recipe) -> None:
    """Raise InputError if a reward or metric compares the samples of one prompt and there is only one."""
    trained, held_out = recipe.sampling.samples_per_prompt, recipe.evaluation.samples_per_prompt
    for section, samples in (
        *((section, {"sampling": trained, "evaluation": held_out}) for section in recipe.reward),
        *((section, {"evaluation": held_out}) for section in recipe.evaluation.metrics),
    ):
        alone = [f"{key}.samples_per_prompt" for key, count in samples.items() if count < 2]
        if alone and REWARDS.get(section.use).needs_companions(section.options):
            raise InputError(
                f"'{section.use}' compares the samples of one prompt, but there is only one: {' and '.join(alone)} "
                "must be at least 2"
            )


def check_dependencies(recipe: Recipe, observer: Observer | None = None, *, offline: bool = False) -> None:
    """Let rewards report what they use, such as a sandbox. Raises BurnishError if one cannot work on this machine."""
    sections = (*recipe.reward, *recipe.evaluation.metrics)
    asked = [REWARDS.get(section.use).preflight(section.options, offline=offline) for section in sections]
    messages = {message for message in asked if message}
    if observer is not None:
        for text, level in sorted(messages):
            observer.message(text, level=level)
