"""The schema of a recipe, the TOML file that a run depends on entirely.

A recipe that cannot work is refused here, before a model is loaded. ``reading`` reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, field_validator, model_validator

from burnish.errors import InputError
from burnish.named_code import is_withheld
from burnish.recipe.algorithm import (
    Algorithm,
    check_algorithm,
    check_credit,
    check_normalisation,
    resolve_algorithm,
    resolve_rewards,
)
from burnish.recipe.backend import BackendSection, check_backend, check_engine, corrects_by_default
from burnish.recipe.evaluation import Evaluation, Guards, answer_reading, check_correct, guarded_metrics
from burnish.recipe.reading import RECIPES as RECIPES
from burnish.recipe.reading import builtin_recipes as builtin_recipes
from burnish.recipe.reading import read_recipe, validate
from burnish.recipe.sections import (
    LORA_LEARNING_RATE,
    MAX_SIZE,
    ChatSection,
    CheckpointSection,
    LSTMShape,
    Optimizer,
    Pretrain,
    RewardSection,
    Section,
    check_rewards,
)
from burnish.registry import nearest
from burnish.types import SamplingParams


class LoRA(Section):
    """Low-rank adapters (arXiv 2106.09685) in place of full fine-tuning."""

    rank: int = Field(16, ge=1, le=65536)
    alpha: float | None = Field(None, gt=0)
    """The adapter's output is scaled by alpha / rank; None means 2 * rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Layers with an adapter, by the end of their names."""
    target_parameters: list[str] | None = None
    """Further parameters with an adapter, by the end of their names: fused experts, such as "experts.down_proj"."""
    modules_to_save: list[str] | None = None
    """Modules that are trained as a whole, and saved with the adapter."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitude of each output apart from its direction (arXiv 2402.09353)."""

    @model_validator(mode="after")
    def _check_targets(self) -> LoRA:
        if not self.targets and not self.target_parameters:
            raise ValueError('targets is empty; name layers, or use "all-linear"')
        return self


_OWN_KEYS = {
    "causal_lm": ("lora", "save_dtype"),
    "tabular": (),
    "lstm": ("lstm", "vocabulary", "vocabulary_size", "weights", "pretrain"),
    "module": ("module", "scores", "options", "vocabulary", "vocabulary_size", "weights", "pretrain"),
}
"""policy.use -> the keys that only it has; each of them defaults to None."""


class PolicySection(Section):
    """The policy: which model is trained, and how."""

    use: Literal["causal_lm", "lstm", "module", "tabular"] = "causal_lm"
    model: str = "smollm2-135m"
    lora: LoRA | None = None
    lstm: LSTMShape | None = None
    module: str | None = None
    """``file:object`` or ``module:object``: a torch module, or a function that returns one."""
    scores: Literal["logits", "probabilities", "logprobs"] | None = None
    """What the module's output means."""
    options: dict[str, Any] | None = None
    """Keyword arguments of the function that returns the module."""
    vocabulary: str | None = None
    """ "character", "byte", "bpe" or the path of a vocabulary.json; None means "character"."""
    vocabulary_size: int | None = Field(None, ge=257, le=MAX_SIZE)
    weights: str | None = None
    """A folder with the model.safetensors and vocabulary.json that training starts from."""
    pretrain: Pretrain | None = None
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    """Data type of the saved weights; None keeps the base's own, so that a bfloat16 model does not double in size."""
    gradient_checkpointing: bool = False
    """Recompute the layers in the backward pass: about a third more time, far less memory."""

    @model_validator(mode="after")
    def _check_keys(self) -> PolicySection:
        if self.use == "tabular" and self.lora is not None:
            raise ValueError("a tabular policy has no layers for LoRA; remove policy.lora")
        if self.lora is not None and self.save_dtype is not None:
            raise ValueError(
                "policy.save_dtype converts a whole model, and an adapter is saved as it is trained; remove it, and choose "
                "the type of the merged model with `burnish export RUN --merge --dtype ...`"
            )
        for key in dict.fromkeys(key for keys in _OWN_KEYS.values() for key in keys):
            if getattr(self, key) is not None and key not in _OWN_KEYS[self.use]:
                owners = " or ".join(f'"{use}"' for use, keys in _OWN_KEYS.items() if key in keys)
                raise ValueError(f'policy.{key} belongs to policy.use = {owners}; remove it with "{self.use}"')
        if self.use == "module":
            if self.module is None or ":" not in self.module:
                raise ValueError(
                    'policy.use = "module" needs policy.module = "file:object", a torch module or a function that '
                    "returns one"
                )
            if self.scores is None:
                raise ValueError(
                    'policy.scores is missing; set it to what the module returns: "logits", "probabilities" (it ends '
                    'in a softmax) or "logprobs"'
                )
        if self.weights is not None and self.vocabulary is not None:
            raise ValueError("policy.weights brings its own vocabulary.json; remove policy.vocabulary")
        if self.vocabulary_size is not None and self.vocabulary != "bpe":
            raise ValueError(
                'policy.vocabulary_size belongs to policy.vocabulary = "bpe"; remove it, since the others have a fixed '
                "size"
            )
        return self


class TaskSection(ChatSection):
    """The task that the prompts come from; other keys are its options."""

    use: str = "news"
    max_prompt_tokens: int | None = Field(None, ge=1, le=MAX_SIZE)
    """The most tokens of a prompt; None is what the model's positions leave beside ``sampling.max_new_tokens``."""
    long_prompts: Literal["refuse", "drop", "cut_start", "cut_end"] = "refuse"
    """Longer prompts end the run before it begins, are left out, or lose their start or end."""


class Sampling(Section):
    """How completions are sampled from the policy."""

    prompts_per_step: int = Field(4, ge=1, le=MAX_SIZE)
    samples_per_prompt: int = Field(8, ge=1, le=MAX_SIZE)
    max_new_tokens: int = Field(64, ge=1, le=MAX_SIZE)
    temperature: float = Field(1.0, ge=1e-6)
    """Below 1e-6, divided logits would overflow."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=MAX_SIZE)
    min_p: float = Field(0.0, ge=0, le=1)
    """Keep tokens at least this share as probable as the most probable one; 0 keeps all."""
    min_new_tokens: int = Field(0, ge=0, le=MAX_SIZE)
    """Tokens before a text can end; until then, tokens that would end it have probability 0."""
    stop: list[str] = Field([])
    """Texts that end a completion; a string is short for a list of one."""
    stop_token_ids: list[int] = Field([])
    """Tokens that end a completion, besides the model's own."""
    keep_stop: bool = False
    """Whether the stop text remains in the completion's text."""
    nlpo_top_p: float = Field(1.0, gt=0, le=1)
    """NLPO (arXiv 2210.01241): sample only from the top-p set of a lagged policy; 1 turns it off."""
    nlpo_every: int = Field(10, ge=1)
    """Steps after which the lagged policy is updated."""

    @field_validator("stop", mode="before")
    @classmethod
    def _list_from_text(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_masks(self) -> Sampling:
        limits = ("top_p", self.top_p < 1), ("top_k", self.top_k > 0), ("min_p", self.min_p > 0)
        others = [key for key, used in (*limits, ("min_new_tokens", self.min_new_tokens > 0)) if used]
        if self.nlpo_top_p < 1 and others:
            raise ValueError(
                f"nlpo_top_p and {others[0]} restrict the tokens by different rules; together they may leave no token: "
                "use one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_ends(self) -> Sampling:
        if "" in self.stop:
            raise ValueError("stop: an empty text would end every completion at its first token; remove it")
        if negative := [token for token in self.stop_token_ids if token < 0]:
            raise ValueError(f"stop_token_ids: {negative[0]} is not a token id; write numbers from 0 on")
        if self.keep_stop and not (self.stop or self.stop_token_ids):
            raise ValueError("keep_stop = true keeps the stop text, but there is none; set stop, or remove keep_stop")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens = {self.min_new_tokens} is above max_new_tokens = {self.max_new_tokens}; use at most "
                f"{self.max_new_tokens}"
            )
        return self

    @property
    def params(self) -> SamplingParams:
        """The parameters that a sampler takes."""
        return SamplingParams(
            self.max_new_tokens, self.temperature, self.top_p, self.top_k, self.nlpo_top_p, self.min_p,
            self.min_new_tokens, tuple(self.stop), tuple(self.stop_token_ids), self.keep_stop,
        )  # fmt: skip


class Job(Section):
    """The keys shared by the recipes of all verbs that train."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(0, ge=0)
    steps: int = Field(25, ge=1, le=10**9)
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads; None uses torch's default. Results are reproducible only with the same number."""
    policy: PolicySection = PolicySection()
    optimizer: Optimizer = Optimizer()
    checkpoint: CheckpointSection = CheckpointSection()

    @model_validator(mode="after")
    def _choose_learning_rate(self) -> Job:
        if self.policy.lora is not None and "learning_rate" not in self.optimizer.model_fields_set:
            optimizer = self.optimizer.model_copy(update={"learning_rate": LORA_LEARNING_RATE})
            # Still a default: it is chosen again if the policy changes.
            optimizer.model_fields_set.discard("learning_rate")
            object.__setattr__(self, "optimizer", optimizer)
        return self

    @model_validator(mode="after")
    def _check_keep_best(self) -> Job:
        evaluation = getattr(self, "evaluation", None)
        best = self.checkpoint.keep_best
        if best is not None and not best.startswith("held_out/"):
            raise ValueError(f"checkpoint.keep_best = '{best}': write held_out/ and a metric, such as held_out/reward")
        if best is not None and evaluation is not None and evaluation.every == 0:
            raise ValueError(
                "checkpoint.keep_best chooses among the models that are measured during training, but none is; set "
                "evaluation.every"
            )
        return self

    def toml(self) -> str:
        """Return the recipe as TOML with every default; reading it gives an equal recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


class Recipe(Job):
    """The recipe of ``burnish train``."""

    record_tokens: bool = False
    """Whether samples.jsonl has the token ids and log-probabilities of each completion."""
    task: TaskSection = TaskSection()
    sampling: Sampling = Sampling()
    algorithm: Algorithm = Algorithm()
    reward: list[RewardSection] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    guards: Guards = Guards()
    backend: BackendSection = BackendSection()

    @property
    def guarded(self) -> tuple[str, ...]:
        """The keys of a held-out evaluation that must not get worse while the reward rises."""
        return guarded_metrics(self.guards, self.reward, self.evaluation)

    @model_validator(mode="after")
    def _check_rewards(self) -> Recipe:
        check_rewards(self.reward, self.sampling.samples_per_prompt, self.sampling.prompts_per_step, self.steps)
        guarded_metrics(self.guards, self.reward, self.evaluation)
        check_correct(self.evaluation, self.reward)
        return self

    @model_validator(mode="after")
    def _check_best_set(self) -> Recipe:
        best, sets = self.checkpoint.keep_best or "", [section.name for section in self.evaluation.sets]
        name = best.removeprefix("held_out/set/").partition("/")[0]
        if best.startswith("held_out/set/") and name not in sets:
            raise ValueError(
                f"checkpoint.keep_best = '{best}': '{name}' is not one of evaluation.sets{nearest(name, sets)}; known: "
                f"{', '.join(sets) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _check_backend(self) -> Recipe:
        check_backend(self.backend, self.policy, self.sampling, self.algorithm)
        check_engine(self.backend, self.policy, self.sampling, self.evaluation.sampling)
        return self

    @property
    def held_out_sampling(self) -> SamplingParams:
        """How held-out completions are sampled."""
        return self.evaluation.sampling.params(self.sampling.params)

    @model_validator(mode="after")
    def _check_chat_template(self) -> Recipe:
        for key, value in (("template_kwargs", self.task.template_kwargs), ("template", self.task.template_file)):
            if value is not None and self.policy.use != "causal_lm":
                raise ValueError(f'task.{key}: only policy.use = "causal_lm" has a chat template; remove it')
            if value is not None and self.task.options.get("chat") is False:
                raise ValueError(f"task.{key}: with chat = false no prompt goes through the chat template; remove one")
        return self

    def resolved(self) -> Recipe:
        """Return the recipe with all that depends on version and machine written out, so that it always trains the same."""
        algorithm, rewards = resolve_algorithm(self.algorithm), resolve_rewards(self.algorithm, self.reward)
        optimizer = self.optimizer.resolved()
        if self.backend.use == "ray":  # what another process computed cannot be looked up
            optimizer = optimizer.model_copy(update={"reuse_sampling": False})
        if self.algorithm.importance.form is None and corrects_by_default(self.backend):
            corrected = algorithm.importance.model_copy(update={"form": "truncate"})
            algorithm = algorithm.model_copy(update={"importance": corrected})
        return self.model_copy(update={"algorithm": algorithm, "reward": rewards, "optimizer": optimizer})


def _without_none(value: Any) -> Any:
    # TOML has no null; leaving a key out means the same as None. pydantic's exclude_none stops at plain dicts.
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def load_recipe(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, changes: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe from a TOML file, a built-in recipe's name or a mapping.

    ``changes`` are top-level keys to set, ``overrides`` are ``section.key=value`` texts, applied after them. Raises
    InputError if the file is missing or invalid, or the recipe cannot work.
    """
    data, where = read_recipe(source, overrides, changes=changes)
    recipe = validate(Recipe, data, where)
    check_names(recipe, where)
    return recipe


def check_names(recipe: Recipe, where: str = "recipe") -> None:
    """Raise InputError if a name in the recipe is unknown or does not take one of its options; nothing is loaded."""
    from burnish.rewards.forms import TABLE
    from burnish.rewards.registry import METRIC, REWARDS
    from burnish.tasks.registry import TASKS, check_task_options

    try:
        check_algorithm(recipe.algorithm, recipe.sampling.prompts_per_step, recipe.sampling.samples_per_prompt)
        check_normalisation(recipe.algorithm, recipe.reward)
        check_credit(recipe.algorithm, recipe.reward)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if recipe.sampling.nlpo_top_p < 1 and recipe.policy.use == "causal_lm":
        raise InputError(
            f'{where}: sampling.nlpo_top_p: not available with policy.use = "causal_lm", since a second model would '
            'have to run for every token; use "lstm", "module" or "tabular", or sampling.top_p'
        )
    unsupported = [key for key in ("min_new_tokens", "stop", "stop_token_ids") if getattr(recipe.sampling, key)]
    if unsupported and recipe.policy.use == "tabular":
        raise InputError(
            f'{where}: sampling.{unsupported[0]}: not available with policy.use = "tabular", whose texts end at the full '
            'stop; remove it, or use "lstm", "module" or "causal_lm"'
        )
    for key, sections, beside in (
        ("reward", recipe.reward, TABLE),
        ("evaluation.metrics", recipe.evaluation.metrics, METRIC),
    ):
        for index, section in enumerate(sections):
            if is_withheld(section.use):
                continue
            try:
                function = REWARDS.get(section.use)
                function.check_options(section.options, beside)
                function.check_credit(getattr(section, "credit", "completion"))
            except InputError as error:
                raise InputError(f"{where}: {key}.{index}: {error}") from error
    try:
        answer_reading(recipe.evaluation, recipe.reward)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    named: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [("task", recipe.task.use, recipe.task.options, {})]
    for index, one in enumerate(recipe.evaluation.sets):
        keys = {"own": tuple(type(one).model_fields), "refused": one.refused}
        named.append((f"evaluation.sets.{index}", one.use, one.task_options(recipe.task), keys))
    for key, use, options, keys in named:
        try:
            if not is_withheld(use):
                check_task_options(TASKS.get(use), options, **keys)
        except InputError as error:
            raise InputError(f"{where}: {key}: {error}") from error
        if recipe.policy.use == "tabular" and use != "toy" and ":" not in use:
            raise InputError(
                f'{where}: policy.use = "tabular" has a vocabulary of four characters, which cannot spell the texts of '
                f"task '{use}'; use the task \"toy\" or a language model"
            )
