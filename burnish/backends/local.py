"""One process on one machine; sampler and trainer share the weights."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burnish.catalogue.convert import resolve_model
from burnish.errors import BurnishError, InputError
from burnish.policies.vocabulary import check_plain
from burnish.protocols import Lagging, LanguageModel, Observer, Policy, Releasable, Sampler, Task, ValueModel
from burnish.recipe.algorithm import critic_of, preset_of, scored_by
from burnish.recipe.schema import PolicySection, Recipe
from burnish.rewards.combine import Combination
from burnish.rewards.diversity import mostly_unspaced
from burnish.rewards.registry import REWARDS
from burnish.run.folder import BROKEN_ROWS
from burnish.system.files import explained, write_text
from burnish.tasks.registry import TASKS
from burnish.training.critic import Critic
from burnish.training.step import Learner
from burnish.training.trainer import optimizer_for
from burnish.types import Completion, Prompt

if TYPE_CHECKING:
    from burnish.policies.causal_lm import CausalLM


class Remembering:
    """A frozen model that remembers the completions it was asked about.

    A reward and the KL term often ask the reference about the same samples; the second question costs nothing. A sample
    is known by the object it is, not by its tokens: an equal one of another step is asked about anew, among that step's
    companions, so that every step's last bits are its own and a resumed run's are those of a run never stopped.
    """

    def __init__(self, language_model: LanguageModel, *, capacity: int = 4096) -> None:
        self._inner = language_model
        self._capacity = capacity
        # The completion is kept beside its answer: as long as it lives, no other object has its id.
        self._known: dict[tuple[int, float], tuple[Completion, Tensor]] = {}

    def encode(self, text: str) -> tuple[int, ...]:
        return self._inner.encode(text)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        return self._inner.encode_prompt(prompt)

    def release(self) -> None:
        """Lets go of the model's weights where it can read them again."""
        if isinstance(self._inner, Releasable):
            self._inner.release()

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        if not completions:
            return torch.zeros(0)
        keys = [(id(completion), temperature) for completion in completions]
        missing = {key: completion for key, completion in zip(keys, completions, strict=True) if key not in self._known}
        if missing:
            found = self._inner.token_logprobs(list(missing.values()), temperature)
            lengths = [len(completion.token_ids) for completion in missing.values()]
            for (key, completion), logprobs in zip(missing.items(), torch.split(found, lengths), strict=True):
                self._known[key] = (completion, logprobs)
        answer = torch.cat([self._known[key][1] for key in keys])
        for oldest in list(self._known)[: max(0, len(self._known) - self._capacity)]:
            del self._known[oldest]
        return answer


def keep_freed_memory() -> None:
    """Lets glibc keep large freed blocks for the next step instead of handing them back to the kernel.

    The tensors of a step are allocated and freed alike in every step; mapping and zeroing their pages anew took a tenth
    of a training step's processor time (docs/lessons.md). Does nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    # Setting the one without the other would switch off what glibc does by itself.
    if mallopt(mmap_threshold, 1 << 26) == 1:
        mallopt(trim_threshold, (1 << 31) - 1)


def build(
    recipe: Recipe, *, offline: bool = False, observer: Observer | None = None, folder: Path | None = None
) -> tuple[Learner, list[Prompt]]:
    """A learner and the held-out prompts, from a recipe.

    Args:
        folder: the run folder, where a policy that is made and not loaded keeps what training starts from.
    Raises:
        InputError: the model or the data cannot be had, or the task has no prompts.
    """
    keep_freed_memory()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    train, held_out = task_prompts(recipe, offline=offline, observer=observer, folder=folder)
    check_prompts(recipe, train, held_out, observer)
    check_companions(recipe)
    say_walls(recipe, observer)
    policy: Policy
    sampler: Sampler
    if recipe.policy.use in ("lstm", "module"):
        from burnish.backends.modules import build_module_policy, training_texts

        texts = partial(training_texts, recipe, train, offline=offline)
        policy, sampler = build_module_policy(recipe.policy, recipe.seed, texts=texts, folder=folder, observer=observer)
        policy.reference = Remembering(policy.reference)
    else:
        policy, sampler = build_policy(recipe.policy, recipe.seed, offline=offline, observer=observer)
    if recipe.sampling.nlpo_top_p < 1 and isinstance(policy, Lagging):
        policy.keep_up()
    rewards = scored_by(recipe.algorithm, recipe.reward)
    scorer = Combination.from_recipe(rewards, policy.reference, decode=policy.decode)
    learner = Learner(
        recipe, policy, sampler, scorer, train, preset_of(recipe.algorithm), optimizer_for(policy, recipe.optimizer),
        critic=critic_for(policy, recipe), metrics=Combination.of_metrics(recipe.evaluation.metrics, policy.reference),
    )  # fmt: skip
    return learner, held_out


def critic_for(policy: Policy, recipe: Recipe) -> Critic | None:
    """The critic of a recipe whose algorithm has one, a copy of the policy as it is now with a head of its own."""
    if not preset_of(recipe.algorithm).critic:
        return None
    from burnish.policies.causal_lm import CausalLM
    from burnish.policies.module import ModulePolicy
    from burnish.policies.tabular import Tabular
    from burnish.policies.value_models import ModuleValues, TableValues, TrunkValues

    model: ValueModel
    if isinstance(policy, CausalLM):
        model = TrunkValues(policy)
    elif isinstance(policy, ModulePolicy):
        model = ModuleValues(policy)
    elif isinstance(policy, Tabular):
        model = TableValues(policy)
    else:
        raise InputError(f"algorithm.use = '{recipe.algorithm.use}': no critic is known for a {type(policy).__name__}")
    return Critic(model, optimizer_for(model, recipe.optimizer), critic_of(recipe.algorithm))


def task_prompts(
    recipe: Recipe, *, offline: bool = False, observer: Observer | None = None, folder: Path | None = None
) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts of the recipe's task, its data fetched where that is needed.

    Args:
        folder: the run folder, where rows that cannot be used are listed.
    """
    task = prepared_task(recipe, offline=offline, observer=observer)
    with task_errors(recipe.task.use):
        sides = list(task.train()), list(task.evaluation())
    broken = getattr(task, "broken", ())
    if folder is not None:
        lines = [json.dumps({"place": row.place, "reason": row.reason}, ensure_ascii=False) + "\n" for row in broken]
        with explained(f"cannot write {folder / BROKEN_ROWS}"):
            if lines:
                write_text(folder / BROKEN_ROWS, "".join(lines))
            else:  # one of before is of data that were mended since
                (folder / BROKEN_ROWS).unlink(missing_ok=True)
    train, held_out = checked_prompts(*sides, recipe.task.use)
    return train, held_out[: recipe.evaluation.prompts]


def prepared_task(recipe: Recipe, *, offline: bool = False, observer: Observer | None = None) -> Task:
    """The recipe's task with its data fetched."""
    with task_errors(recipe.task.use):
        task = TASKS.get(recipe.task.use)(**recipe.task.options)
        prepare: Callable[..., None] | None = getattr(task, "prepare", None)
        if prepare is not None:
            prepare(offline=offline, observer=observer)
    return task


@contextmanager
def task_errors(name: str) -> Iterator[None]:
    """Turns what a task of one's own raises into one line."""
    try:
        yield
    except BurnishError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"task '{name}' raised {type(error).__name__}: {reason}") from error


def checked_prompts(train: list[Prompt], held_out: list[Prompt], name: str) -> tuple[list[Prompt], list[Prompt]]:
    """A task's two sides, if they are prompts, neither is empty, and no prompt is on both; else InputError."""
    for side, prompts in (("training", train), ("held-out", held_out)):
        if not prompts:
            raise InputError(f"task '{name}' has no {side} prompts: check its options and its data")
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                raise InputError(
                    f"task '{name}' gives a {type(prompt).__name__} among its {side} prompts: make it a Prompt"
                )
        if len({prompt.id for prompt in prompts}) < len(prompts):
            raise InputError(f"task '{name}' gives two {side} prompts the same id: ids must be unique")
    if both := {prompt.id for prompt in train} & {prompt.id for prompt in held_out}:
        raise InputError(
            f"task '{name}' has prompt '{min(both)}' on both sides: held-out prompts must not be trained on"
        )
    return train, held_out


def check_prompts(
    recipe: Recipe, train: Sequence[Prompt], held_out: Sequence[Prompt] = (), observer: Observer | None = None
) -> None:
    """Raises InputError where a prompt is nothing for the policy or for a reward: before a model is loaded, or made."""
    check_references(recipe, train, held_out)
    check_languages(recipe, [*train, *held_out], observer)
    if recipe.policy.use in ("lstm", "module"):
        for prompt in (*train, *held_out):
            check_plain(prompt)


def check_languages(recipe: Recipe, prompts: Sequence[Prompt], observer: Observer | None = None) -> None:
    """Raises InputError where a reward or a metric knows English only (``function.english_only``) and most references are
    Chinese or Japanese. Where prompts are and references are not there, a warning: the answers may be English."""
    references = [prompt.reference for prompt in prompts if prompt.reference is not None]
    texts = references or [prompt.text for prompt in prompts]
    if 2 * sum(map(mostly_unspaced, texts)) <= len(texts):
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
    """Raises InputError where a reward or a metric says that it needs a reference (``function.needs_reference``) and a
    prompt that it shall judge has none: before a model is loaded, not when the first sample is scored."""
    for key, sections, prompts in (
        ("reward", recipe.reward, [*train, *held_out]),
        ("evaluation.metrics", recipe.evaluation.metrics, held_out),
    ):
        without = [prompt for prompt in prompts if prompt.reference is None or not prompt.reference.strip()]
        for index, section in enumerate(sections):
            if without and getattr(REWARDS.get(section.use).function, "needs_reference", False):
                more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
                raise InputError(
                    f"{key}.{index}: '{section.use}' needs a reference, but prompt '{without[0].id}'{more} of task "
                    f"'{recipe.task.use}' has none: leave this {key.rpartition('.')[2].removesuffix('s')} out, or give "
                    "the task's prompts references"
                )


def check_companions(recipe: Recipe) -> None:
    """Raises InputError where a reward or a metric compares the samples of one prompt (``function.needs_companions``) and
    there is one: it would have the same value for any text."""
    trained, held_out = recipe.sampling.samples_per_prompt, recipe.evaluation.samples_per_prompt
    for section, samples in (
        *((section, {"sampling": trained, "evaluation": held_out}) for section in recipe.reward),
        *((section, {"evaluation": held_out}) for section in recipe.evaluation.metrics),
    ):
        alone = [f"{key}.samples_per_prompt" for key, count in samples.items() if count < 2]
        if alone and getattr(REWARDS.get(section.use).function, "needs_companions", False):
            raise InputError(
                f"'{section.use}' compares the samples of one prompt, and there is one: {' and '.join(alone)} must be at "
                "least 2"
            )


def say_walls(recipe: Recipe, observer: Observer | None = None) -> None:
    """Has rewards that hang on something outside (``function.stand``: a sandbox, another model's address) look for it before
    a model is loaded, and says what they found. Raises BurnishError where they cannot work."""
    said = set()
    for section in (*recipe.reward, *recipe.evaluation.metrics):
        reward = REWARDS.get(section.use)
        stand = getattr(reward.function, "stand", None)
        if stand is not None:
            said.add(stand(**{**reward.options, **section.options}))
    if observer is not None:
        for text, level in sorted(said):
            observer.message(text, level=level)


def build_policy(
    section: PolicySection, seed: int, *, offline: bool = False, observer: Observer | None = None
) -> tuple[Policy, Sampler]:
    """The policy of a recipe that names a language model or the table, and the sampler that shares its weights."""
    if section.use == "tabular":
        from burnish.policies.tabular import Tabular

        table = Tabular()
        return table, table
    from burnish.generation.engine import sampler_for

    policy = build_language_model(section, seed, offline=offline, observer=observer)
    if policy.plain_because and observer is not None:
        observer.message(f"prompts are not shared between samples, which is slower: {policy.plain_because}")
    policy.reference = Remembering(policy.reference)
    return policy, sampler_for(policy)


def build_language_model(
    section: PolicySection, seed: int, *, offline: bool = False, observer: Observer | None = None
) -> CausalLM:
    """The language model that a recipe names, to be trained. Raises InputError or BurnishError where it cannot be had."""
    from burnish.policies.loading import load_policy

    source = resolve_model(section.model, offline=offline, observer=observer)
    return load_policy(
        source, lora=section.lora, dtype=section.dtype, device=section.device, offline=offline, seed=seed,
        gradient_checkpointing=section.gradient_checkpointing,
    )  # fmt: skip
