"""Recipes: reading, overrides, error messages, and that a resolved recipe reads back as an equal recipe."""

from __future__ import annotations

import copy
import math
import tomllib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.algorithms.presets import PRESETS
from burnish.api import _read_recipe
from burnish.errors import InputError
from burnish.recipe.algorithm import resolve_preset
from burnish.recipe.brief import brief_toml
from burnish.recipe.schema import PolicySection, Recipe, builtin_recipes, load_recipe

SMALL: dict[str, Any] = {"name": "small", "reward": [{"use": "exact"}], "task": {"use": "toy"}}


def with_(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(SMALL)
    table = data
    *sections, key = path.split(".")
    for section in sections:
        table = table.setdefault(section, {})
    table[key] = value
    return data


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
class TestBuiltin:
    def test_is_valid_and_listed(self, name):
        recipe = load_recipe(name)
        assert name in builtin_recipes()
        assert recipe.name

    def test_its_short_form_fits_a_screen_and_reads_back_as_an_equal_recipe(self, name):
        recipe = load_recipe(name).resolved()
        assert len(brief_toml(recipe).splitlines()) <= 40
        assert load_recipe(tomllib.loads(brief_toml(recipe))).resolved() == recipe

    def test_reads_back_as_an_equal_recipe(self, name):
        recipe = load_recipe(name)
        assert load_recipe(tomllib.loads(recipe.toml())) == recipe
        assert load_recipe(tomllib.loads(recipe.toml())).toml() == recipe.toml()


def test_the_short_form_keeps_any_key_and_text():
    stop = ['a", ]', "[\n    b,\n]", "# c"]
    data = {**SMALL, "sampling": {"stop": stop}, "task": {"use": "data", "path": "q.csv", "template_kwargs": {}}}
    data["task"]["template_kwargs"] = {"a.b": [[1, 2], {"c d": "e\n"}], "f": {}}
    data["evaluation"] = {"pass_at": [1, 2], "samples_per_prompt": 2, "correct": "exact"}
    recipe = load_recipe(data).resolved()
    text = brief_toml(recipe)
    assert load_recipe(tomllib.loads(text)).resolved() == recipe
    assert "evaluation.pass_at = [1, 2]\n" in text and "optimizer.learning_rate = 1e-05\n" in text


class TestReading:
    def test_defaults(self):
        recipe = load_recipe(SMALL)
        assert (recipe.seed, recipe.algorithm.use, recipe.sampling.temperature) == (0, "grpo", 1.0)
        assert recipe.algorithm.aggregation is None
        assert recipe.optimizer.betas == (0.9, 0.999)
        assert "betas = [" in recipe.toml()

    @pytest.mark.parametrize("use", list(PRESETS))
    def test_the_papers_values_are_written_out(self, use):
        recipe = load_recipe(with_("algorithm.use", use))
        chosen, preset = recipe.resolved().algorithm, PRESETS[use]
        assert chosen.aggregation == preset.aggregation
        limits = (preset.limits.low, preset.limits.high) if preset.clips else (None, None)
        assert (chosen.clip_low, chosen.clip_high, chosen.dual_clip) == (*limits, None)
        assert chosen.refills == (preset.refills if preset.needs_group else None)
        assert resolve_preset(chosen) == resolve_preset(recipe.algorithm) == preset
        assert load_recipe(tomllib.loads(recipe.resolved().toml())) == recipe.resolved()

    def test_another_algorithm_has_its_own_defaults(self):
        """Reading leaves unset keys unset, so that a change of ``use`` also changes their defaults."""
        read = load_recipe(SMALL, ["algorithm.use=grpo"])
        changed = load_recipe(read.model_dump(mode="json", exclude_none=True), ["algorithm.use=rloo"])
        assert resolve_preset(changed.algorithm) == PRESETS["rloo"]

    def test_explicit_values_reach_the_preset(self):
        keys = ["clip_low=0.1", "clip_high=0.3", "dual_clip=3.0", "aggregation=token_mean"]
        preset = resolve_preset(load_recipe(SMALL, [f"algorithm.{key}" for key in keys]).algorithm)
        assert (preset.limits.low, preset.limits.high, preset.limits.dual) == (0.1, 0.3, 3.0)
        assert preset.aggregation == "token_mean"

    def test_the_callers_mapping_is_not_changed(self):
        data = copy.deepcopy(SMALL)
        load_recipe(data, ["sampling.top_k=3", "reward.0.weight=2.5", "task.prompts=4", "steps=7"], changes={"seed": 9})
        assert data == SMALL

    def test_changes_then_overrides_in_order(self):
        recipe = load_recipe(SMALL, ["steps=3", "steps=4", "seed=5"], changes={"seed": 6, "threads": 1})
        assert (recipe.steps, recipe.seed, recipe.threads) == (4, 5, 1)

    @pytest.mark.parametrize(
        ("override", "where", "value"),
        [
            ("sampling.temperature=0.5", ("sampling", "temperature"), 0.5),
            ("algorithm.use=rloo", ("algorithm", "use"), "rloo"),
            ('algorithm.use="rloo"', ("algorithm", "use"), "rloo"),
            ("optimizer.betas=[0.5, 0.9]", ("optimizer", "betas"), (0.5, 0.9)),
            ("policy.model=./a=b", ("policy", "model"), "./a=b"),
            (" steps = 3", ("steps",), 3),
        ],
    )
    def test_override(self, override, where, value):
        current: Any = load_recipe(SMALL, [override])
        for name in where:
            current = getattr(current, name)
        assert current == value

    def test_the_number_after_the_last_one_adds_a_table(self):
        data = copy.deepcopy(SMALL)
        recipe = load_recipe(data, ["reward.1.use=repetition", "reward.1.weight=0.5"])
        assert [(one.use, one.weight) for one in recipe.reward][1:] == [("repetition", 0.5)] and data == SMALL
        with pytest.raises(InputError, match="'2' is not an item; use a number from 0 to 1"):
            load_recipe(data, ["reward.2.use=repetition"])
        with pytest.raises(InputError, match=r"'reward.1.use' is missing"):
            load_recipe(data, ["reward.1.weight=0.5"])

    def test_override_of_a_section(self):
        recipe = load_recipe(SMALL, ["policy.lora={rank = 4}", "algorithm.kl={coefficient = 0.1}"])
        assert recipe.policy.lora.rank == 4
        assert (recipe.algorithm.kl.coefficient, recipe.algorithm.kl.estimator) == (0.1, "k3")

    def test_other_keys_are_options(self):
        recipe = load_recipe(with_("task.prompts", 3))
        assert recipe.task.options == {"prompts": 3}
        assert recipe.reward[0].options == {}

    def test_part_names(self):
        data = {**SMALL, "reward": [{"use": "exact"}, {"use": "exact", "name": "second"}]}
        assert [section.part for section in load_recipe(data).reward] == ["exact", "second"]

    def test_frozen(self):
        from pydantic import ValidationError

        with pytest.raises(ValidationError, match="frozen"):
            load_recipe(SMALL).steps = 5


class TestErrors:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (with_("sampling.temprature", 1.0), r"sampling\.temprature.*did you mean 'temperature'"),
            (with_("algorithm.kl.coeficient", 0.1), r"algorithm\.kl\.coeficient.*did you mean 'coefficient'"),
            (with_("policy", {"lora": {"rank": 4}, "save_dtype": "bfloat16"}), "save_dtype converts a whole model"),
            (
                with_("policy", {"use": "lstm", "save_dtype": "float32"}),
                'save_dtype belongs to policy.use = "causal_lm"',
            ),
            (with_("policy.lora.rnk", 4), r"policy\.lora\.rnk.*did you mean 'rank'"),
            (with_("sampling.temperature", 0.0), r"sampling\.temperature = 0\.0: .*at least 0\.000001"),
            (with_("sampling.temperature", float("nan")), r"sampling\.temperature = nan"),
            (
                with_("sampling.temperature", 1e-320),
                r"sampling\.temperature = 1e-320: .*at least 0\.000001",
            ),
            (
                with_("sampling.samples_per_prompt", 10**20),
                r"samples_per_prompt = 10+: .*at most 1048576",
            ),
            (with_("sampling.max_new_tokens", 10**20), r"max_new_tokens = 10+: .*at most 1048576"),
            (with_("evaluation.resamples", 10**20), r"resamples = 10+: .*at most 1000000"),
            (with_("algorithm.epochs", 10**9), r"epochs = 10+: .*at most 1000"),
            (with_("threads", 100_000), r"threads = 100000: .*at most 1024"),
            (with_("steps", 10**24), r"steps = 10+: .*at most 1000000000"),
            (with_("name", "a" * 400), "name = 'a+"),
            (with_("sampling.top_p", 1.5), r"sampling\.top_p = 1\.5: .*at most 1"),
            (with_("steps", 2.0), r"steps = 2\.0: .*whole number"),
            (with_("steps", "2"), "steps = '2'"),
            (with_("optimizer.betas", [0.9, 1.0]), r"optimizer\.betas: each beta"),
            (with_("optimizer.schedule", "cosine"), r"optimizer\.schedule = 'cosine': .*'constant' or 'linear'"),
            (with_("policy.dtype", "float16"), r"policy\.dtype = 'float16'"),
            (with_("name", "a b"), "name = 'a b'"),
            (with_("sampling", 3), "sampling = 3"),
            (with_("guards.diversity_drop", 1.0), r"guards\.diversity_drop = 1\.0"),
            (with_("reward", []), "reward"),
            (with_("algorithm.kl", {"coefficient": 0.1, "estimator": "k1", "where": "loss"}), "mean is zero"),
            ({"task": {"use": "toy"}}, r"'name' is missing.*1 more"),
        ],
    )
    def test_message(self, data, message):
        with pytest.raises(InputError, match=message) as caught:
            load_recipe(data)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("use", "keys", "message"),
        [
            ("rloo", ["clip_low=0.1"], r"algorithm\.clip_low: the loss of 'rloo' does not clip.*grpo"),
            ("sapo", ["clip_high=0.1"], r"algorithm\.clip_high: the loss of 'sapo' does not clip"),
            ("cispo", ["dual_clip=3.0"], r"algorithm\.dual_clip: the loss of 'cispo' is not PPO's"),
            ("grpo", ["dual_clip=1.15"], r"dual_clip = 1\.15: must be above 1 \+ clip_high = 1\.2"),
            ("grpo", ["dual_clip=1.5", "clip_high=0.5"], r"must be above 1 \+ clip_high = 1\.5"),
            ("grpo", ["clip_low=1.5"], r"algorithm\.clip_low = 1\.5: .*at most 1"),
            ("grpo", ["entropy=-0.1"], r"algorithm\.entropy = -0\.1"),
            ("rloo", ["epochs=2"], r"algorithm\.epochs = 2: the loss of 'rloo' has no ratio.*cispo"),
            ("reinforce", ["minibatches=2"], r"algorithm\.minibatches = 2: the loss of 'reinforce' has no ratio"),
            ("reinforce", ["refills=2"], r"algorithm\.refills = 2: 'reinforce' does not compare"),
            ("grpo", ["kl.target=1.0"], r"algorithm\.kl: target has no effect while coefficient is 0"),
            ("grpo", ["kl.reset_every=5"], r"algorithm\.kl: reset_every has no effect while coefficient is 0"),
            ("grpo", ["kl.coefficient=0.1", "kl.horizon=100.0"], r"horizon .* set target or remove horizon"),
            ("grpo", ["kl={coefficient=0.1, target=1.0, horizon=9.0}"], r"horizon = 9: one step alone has 32 samples"),
            ("grpo", ["overlong.share=0.0"], r"algorithm\.overlong\.share = 0\.0: .*above 0"),
            ("grpo", ["importance.form=cut"], r"algorithm\.importance\.form = 'cut': .*'none', 'truncate' or 'mask'"),
            ("grpo", ["minibatches=33"], r"algorithm\.minibatches = 33: one step has only 32 samples"),
        ],
    )
    def test_algorithm(self, use, keys, message):
        with pytest.raises(InputError, match=message) as caught:
            load_recipe(SMALL, [f"algorithm.use={use}", *(f"algorithm.{key}" for key in keys)])
        assert "\n" not in str(caught.value)

    def test_one_sample_per_step(self):
        sampling = {"prompts_per_step": 1, "samples_per_prompt": 1}
        with pytest.raises(InputError, match=r"'reinforce_pp' compares the samples of one step"):
            load_recipe({**with_("algorithm.use", "reinforce_pp"), "sampling": sampling})

    def test_k1_is_allowed_in_the_reward_and_with_coefficient_0(self):
        load_recipe(with_("algorithm.kl", {"coefficient": 0.1, "estimator": "k1", "where": "reward"}))
        load_recipe(with_("algorithm.kl", {"coefficient": 0.0, "estimator": "k1", "where": "loss"}))

    @pytest.mark.parametrize("algorithm", [name for name, preset in PRESETS.items() if preset.needs_group])
    def test_one_sample_per_prompt(self, algorithm):
        with pytest.raises(InputError, match="samples_per_prompt must be at least 2"):
            load_recipe(SMALL, [f"algorithm.use={algorithm}", "sampling.samples_per_prompt=1"])
        load_recipe(SMALL, ["algorithm.use=reinforce", "sampling.samples_per_prompt=1"])

    @given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=4))
    def test_arbitrary_keys_raise_only_input_errors(self, data):
        with pytest.raises(InputError):
            load_recipe(data)

    @given(st.text(max_size=20))
    def test_any_override_works_or_is_an_input_error(self, override):
        try:
            recipe = load_recipe(SMALL, [override])
        except InputError as error:
            assert str(error)
        else:
            assert isinstance(recipe, Recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "试验"}, "name = '试验': must consist of a-z, A-Z, digits"),
        ({"steps": "5"}, "steps = '5': must be a whole number"),
        ({"steps": 1.5}, "steps = 1.5: must be a whole number"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"optimizer": {"learning_rate": True}}, "optimizer.learning_rate = true: must be a number"),
        ({"optimizer": {"learning_rate": -1}}, "optimizer.learning_rate = -1: must be above 0"),
        ({"optimizer": {"learning_rate": math.inf}}, "optimizer.learning_rate = inf: must be a finite number"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas needs two values, in brackets"),
        ({"optimizer": {"betas": 3}}, "optimizer.betas = 3: must be a list, in brackets"),
        ({"policy": 3}, "policy = 3: must be a table, as in policy = { key = value }"),
        ({"policy": {"lora": 3}}, "policy.lora = 3: must be a table, as in lora = { key = value }"),
        ({"policy": {"dtype": "float61"}}, r"policy.dtype = 'float61': must be .*\(did you mean 'float64'\?\)"),
        ({"guards": {"metrics": "chrf"}}, "guards.metrics = 'chrf': must be a list, in brackets"),
        ({"reward": []}, r"there is no reward; add a \[\[reward\]\] table"),
        ({"reward": [3]}, r"reward.0 = 3: must be a table; write \[\[reward\]\] with its keys"),
        ({"reward": [{"use": 3}]}, "reward.0.use = 3: must be text, in quotes"),
        ({"reward": [{"use": "bleu", "clip": [0, 1, 2]}]}, "reward.0.clip = .*: must have at most 2 values"),
        ({"reward": [{"use": "bleu", "normalise": "grp"}]}, r"must be .*\(did you mean 'group'\?\)"),
    ],
)
def test_a_wrong_value_is_described_in_the_terms_of_a_recipe(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_recipe({"name": "x", "reward": [{"use": "repetition"}], **changes})
    assert "pydantic" not in str(error.value) and " should " not in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "keys", "reason"),
    [
        ("news", ['sampling.stop=["a", ""]'], "stop: an empty text would end every completion"),
        ("news", ["sampling.stop_token_ids=[3, -1]"], "stop_token_ids: -1 is not a token id"),
        ("news", ["sampling.keep_stop=true"], "keep_stop = true keeps the stop text, but there is none"),
        ("news", ["sampling.min_new_tokens=65"], "min_new_tokens = 65 is above max_new_tokens = 40"),
        ("toy", ["sampling.nlpo_top_p=0.9", "sampling.min_p=0.1"], "nlpo_top_p and min_p restrict the tokens"),
        ("toy", ["sampling.min_new_tokens=2"], 'sampling.min_new_tokens: not available with policy.use = "tabular"'),
        ("toy", ["sampling.stop='x'"], 'sampling.stop: not available with policy.use = "tabular"'),
    ],
)
def test_ends_that_cannot_work_are_refused(recipe, keys, reason):
    with pytest.raises(InputError) as refused:
        load_recipe(recipe, keys)
    assert reason in str(refused.value)


def test_one_stop_text_is_short_for_a_list():
    sampling = load_recipe(
        "news", ["sampling.stop='###'", "sampling.stop_token_ids=[7]", "sampling.min_p=0.05"]
    ).sampling
    assert (sampling.params.stop, sampling.params.stop_token_ids, sampling.params.min_p) == (("###",), (7,), 0.05)


class TestHeldOutSampling:
    def test_what_is_not_set_is_as_in_training(self):
        recipe = load_recipe("toy", ["sampling.top_p=0.5", "evaluation.sampling.temperature=0.5"])
        assert recipe.held_out_sampling == replace(recipe.sampling.params, temperature=0.5)
        assert load_recipe("toy", ["sampling.top_p=0.5"]).held_out_sampling == replace(
            recipe.sampling.params, temperature=1.0
        )

    def test_greedy(self):
        greedy = load_recipe(
            "toy", ["sampling.top_p=0.5", "evaluation.sampling.temperature=0", "evaluation.samples_per_prompt=1"]
        ).held_out_sampling
        assert (greedy.temperature, greedy.top_k, greedy.top_p) == (1.0, 1, 1.0)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (["evaluation.sampling.temperature=0", "evaluation.samples_per_prompt=2"], "gives 2 equal samples"),
            (["evaluation.sampling.temperature=1e-9"], "below 1e-6 would overflow"),
            (["evaluation.pass_at=[1]"], "pass_at needs correct"),
            (["evaluation.correct=exact", "evaluation.pass_at=[9]", "evaluation.samples_per_prompt=8"], "k = 9 needs"),
            (["evaluation.correct=exakt"], "evaluation.correct = 'exakt' is neither .*did you mean"),
        ],
    )
    def test_impossible_keys_are_refused(self, keys, message):
        with pytest.raises(InputError, match=message):
            load_recipe("toy", keys)

    def test_the_attempts_are_powers_of_two_unless_named(self):
        keys = ["evaluation.correct=exact", "evaluation.samples_per_prompt=6"]
        assert load_recipe("toy", keys).evaluation.attempts == (1, 2, 4)
        assert load_recipe("toy", [*keys, "evaluation.pass_at=[3]"]).evaluation.attempts == (3,)
        assert load_recipe("toy").evaluation.attempts == ()


def test_a_key_of_another_section_is_named():
    for override, hint in (
        ("learning_rate=1.0", r"\(did you mean optimizer\.learning_rate or policy\.pretrain\.learning_rate\?\)"),
        ("sampling.warmup_step=1", r"\(did you mean optimizer\.warmup_steps\?\)"),
        ("max_new_tokens=1", r"\(did you mean sampling\.max_new_tokens or evaluation\.sampling\.max_new_tokens\?\)"),
        ("weight=1.0", r"\(did you mean .*reward\.0\.weight\?\)"),
        ("sampling.zzz=1", "unknown key 'sampling.zzz'; known keys"),
    ):
        with pytest.raises(InputError, match=hint):
            load_recipe("toy", [override])


def test_lora_has_a_default_learning_rate_of_its_own():
    lora = ["policy.use=causal_lm", "policy.lora.rank=4"]
    full = copy.deepcopy(load_recipe("toy").model_dump(mode="json", exclude_none=True))
    del full["optimizer"]["learning_rate"]
    assert load_recipe(full).optimizer.learning_rate == 1e-5
    recipe = load_recipe(full, lora)
    assert recipe.optimizer.learning_rate == 1e-4
    assert load_recipe(full, [*lora, "optimizer.learning_rate=3e-4"]).optimizer.learning_rate == 3e-4
    assert load_recipe(tomllib.loads(recipe.toml())).optimizer.learning_rate == 1e-4


def test_the_learning_rate_of_a_recipe_object_follows_its_policy():
    full = Recipe(name="full", reward=[{"use": "exact"}])
    assert (
        Recipe(name="lora", policy=PolicySection(lora={"rank": 4}), reward=full.reward).optimizer.learning_rate == 1e-4
    )
    lora = _read_recipe(full, (), (), {"policy": {"lora": {"rank": 4}}})
    assert (full.optimizer.learning_rate, lora.optimizer.learning_rate) == (1e-5, 1e-4)
    assert _read_recipe(lora, (), (), {"policy": {}}).optimizer.learning_rate == 1e-5
    assert _read_recipe(lora, (), ["optimizer.learning_rate=2e-4"], {}).optimizer.learning_rate == 2e-4
    chosen = Recipe(name="chosen", reward=full.reward, optimizer={"learning_rate": 1e-5})
    assert _read_recipe(chosen, (), (), {"policy": {"lora": {"rank": 4}}}).optimizer.learning_rate == 1e-5


def test_pairs_are_not_masked():
    with pytest.raises(InputError, match="mask_truncated: 'online_dpo' trains on pairs"):
        load_recipe("toy", ["algorithm.use=online_dpo", "algorithm.mask_truncated=true"])
