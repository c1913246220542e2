"""The local backend: one process, in which sampler and trainer share the weights."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from burnish.backends.chat import chat_settings, check_conversations
from burnish.backends.held_out_sets import fitting_sets, held_out_sets
from burnish.backends.preflight import check_companions, check_dependencies, check_prompts
from burnish.backends.prompt_lengths import check_lengths
from burnish.backends.prompts import list_broken_rows, task_prompts
from burnish.backends.reference_cache import CachedReference
from burnish.backends.reference_check import check_answers
from burnish.backends.screening import completion_screen
from burnish.catalogue.convert import resolve_model
from burnish.errors import InputError
from burnish.protocols import HasLaggedPolicy, Observer, Policy, Sampler, ValueModel
from burnish.recipe.algorithm import critic_settings, resolve_preset, resolve_rewards
from burnish.recipe.combination import combine_metrics, combine_rewards
from burnish.recipe.schema import PolicySection, Recipe
from burnish.system.machine import keep_freed_memory, resolve_device
from burnish.system.reads import Reads, recorded_reads
from burnish.training.critic import Critic
from burnish.training.learner import Learner
from burnish.training.optimizer import build_optimizer
from burnish.types import Prompt

if TYPE_CHECKING:
    from burnish.policies.causal_lm import CausalPolicy
    from burnish.policies.chat_template import ChatSettings


def build(
    recipe: Recipe,
    *,
    offline: bool = False,
    observer: Observer | None = None,
    folder: Path | None = None,
    reads: Reads | None = None,
) -> tuple[Learner, list[Prompt]]:
    """Build the learner and the held-out prompts of a recipe.

    The run's ``folder`` keeps the initial weights of a policy that is built rather than loaded; ``reads`` gets the
    files that the task and the held-out sets read. Raises InputError if the model or the data are not available, or the
    task has no prompts.
    """
    resolve_device(recipe.policy.device)  # refused before the data are read
    keep_freed_memory()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    with recorded_reads(reads):
        train, held_out = task_prompts(recipe, offline=offline, observer=observer, folder=folder)
        sets = held_out_sets(recipe, train, offline=offline, observer=observer, folder=folder)
    check_prompts(recipe, train, held_out, observer)
    check_companions(recipe)
    check_dependencies(recipe, observer, offline=offline)
    check_answers(recipe, [*train, *held_out], observer)
    for name, prompts in sets.items():
        check_answers(recipe, prompts, observer, f"set '{name}': ")
    policy: Policy
    sampler: Sampler
    if recipe.policy.use in ("lstm", "module"):
        from burnish.backends.modules import build_module_policy, training_texts

        texts = partial(training_texts, recipe, train, offline=offline)
        policy, sampler = build_module_policy(recipe.policy, recipe.seed, texts=texts, folder=folder, observer=observer)
        policy.reference = CachedReference(policy.reference)
    else:
        chat = chat_settings(recipe.task, folder)
        policy, sampler = build_policy(recipe.policy, recipe.seed, offline=offline, observer=observer, chat=chat)
        if recipe.policy.use == "causal_lm":
            model = cast("CausalPolicy", policy)
            check_conversations(policy, [*train, *held_out, *chain(*sets.values())], observer)
            train, held_out, long = check_lengths(recipe, model, train, held_out, observer)
            sets = fitting_sets(recipe, model, sets, observer)
            if folder is not None:
                list_broken_rows(folder, long, more=True)
    if recipe.sampling.nlpo_top_p < 1 and isinstance(policy, HasLaggedPolicy):
        policy.update_lagged_policy()
    rewards = resolve_rewards(recipe.algorithm, recipe.reward)
    scorer = combine_rewards(rewards, policy.reference, decode=policy.decode)
    learner = Learner(
        recipe, policy, sampler, scorer, train, resolve_preset(recipe.algorithm),
        build_optimizer(policy, recipe.optimizer), critic=build_critic(policy, recipe),
        metrics=combine_metrics(recipe.evaluation.metrics, policy.reference), held_out_sets=sets,
        screen=completion_screen(rewards),
    )  # fmt: skip
    return learner, held_out


def build_policy(
    section: PolicySection,
    seed: int,
    *,
    offline: bool = False,
    observer: Observer | None = None,
    chat: ChatSettings | None = None,
) -> tuple[Policy, Sampler]:
    """Build a language model or table policy, and the sampler that shares its weights."""
    if section.use == "tabular":
        from burnish.policies.tabular import TablePolicy

        table = TablePolicy()
        return table, table
    from burnish.generation.engine import make_sampler

    policy = build_language_model(section, seed, offline=offline, observer=observer, chat=chat)
    sampler = make_sampler(policy)
    if observer is not None and policy.padding_reason:
        observer.message(f"prompts are not shared between samples, which is slower: {policy.padding_reason}")
    if observer is not None and policy.sampler_reason:
        observer.message(f"a slower sampler is used, which is exact: {policy.sampler_reason}")
    policy.reference = CachedReference(policy.reference)
    return policy, sampler


def build_language_model(
    section: PolicySection,
    seed: int,
    *,
    offline: bool = False,
    observer: Observer | None = None,
    chat: ChatSettings | None = None,
) -> CausalPolicy:
    """Load the language model that a recipe trains. Raises InputError or BurnishError where it is not available."""
    from burnish.policies.loading import load_policy

    source = resolve_model(section.model, offline=offline, observer=observer)
    policy = load_policy(
        source, lora=section.lora, dtype=section.dtype, device=section.device, offline=offline, seed=seed,
        gradient_checkpointing=section.gradient_checkpointing, chat=chat, save_dtype=section.save_dtype,
        observer=observer,
    )  # fmt: skip
    policy.choose_products()
    if observer is not None:
        for level, text in policy.end_notes():
            observer.message(text, level=level)
    return policy


def build_critic(policy: Policy, recipe: Recipe) -> Critic | None:
    """Build the critic, a copy of the policy with a value head; None for an algorithm without one."""
    if not resolve_preset(recipe.algorithm).critic:
        return None
    from burnish.policies.causal_lm import CausalPolicy
    from burnish.policies.module import ModulePolicy
    from burnish.policies.tabular import TablePolicy
    from burnish.policies.value_models import CausalValueModel, ModuleValueModel, TableValueModel

    model: ValueModel
    if isinstance(policy, CausalPolicy):
        model = CausalValueModel(policy)
    elif isinstance(policy, ModulePolicy):
        model = ModuleValueModel(policy)
    elif isinstance(policy, TablePolicy):
        model = TableValueModel(policy)
    else:
        raise InputError(f"algorithm.use = '{recipe.algorithm.use}': there is no critic for a {type(policy).__name__}")
    return Critic(model, build_optimizer(model, recipe.optimizer), critic_settings(recipe.algorithm))
