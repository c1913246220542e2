"""Recipes: what is read, what is refused and in which words, and that a resolved recipe is the same recipe."""

from __future__ import annotations

import copy
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.algorithms.presets import PRESETS
from burnish.errors import InputError
from burnish.recipe import Recipe, load_recipe, shipped

SMALL: dict[str, Any] = {"name": "small", "reward": [{"use": "exact"}], "task": {"use": "toy"}}


def with_(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(SMALL)
    place = data
    *sections, key = path.split(".")
    for section in sections:
        place = place.setdefault(section, {})
    place[key] = value
    return data


@pytest.mark.parametrize("name", sorted(shipped()))
class TestShipped:
    def test_is_valid_and_listed(self, name):
        recipe = load_recipe(name)
        assert name in shipped()
        assert recipe.name

    def test_written_out_in_full_it_is_the_same_recipe(self, name):
        recipe = load_recipe(name)
        assert load_recipe(tomllib.loads(recipe.toml())) == recipe
        assert load_recipe(tomllib.loads(recipe.toml())).toml() == recipe.toml()


class TestReading:
    def test_defaults(self):
        recipe = load_recipe(SMALL)
        assert (recipe.seed, recipe.algorithm.use, recipe.sampling.temperature) == (0, "grpo", 1.0)
        assert recipe.algorithm.aggregation is None
        assert recipe.optimizer.betas == (0.9, 0.999)
        assert "betas = [" in recipe.toml()

    def test_what_was_handed_in_is_left_alone(self):
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
    def test_an_override(self, override, where, value):
        found: Any = load_recipe(SMALL, [override])
        for name in where:
            found = getattr(found, name)
        assert found == value

    def test_a_section_as_an_override(self):
        recipe = load_recipe(SMALL, ["policy.lora={rank = 4}", "algorithm.kl={coefficient = 0.1}"])
        assert recipe.policy.lora.rank == 4
        assert (recipe.algorithm.kl.coefficient, recipe.algorithm.kl.estimator) == (0.1, "k3")

    def test_options_belong_to_what_use_names(self):
        recipe = load_recipe(with_("task.prompts", 3))
        assert recipe.task.options == {"prompts": 3}
        assert recipe.reward[0].options == {}

    def test_names_of_parts(self):
        data = {**SMALL, "reward": [{"use": "exact"}, {"use": "exact", "name": "again"}]}
        assert [section.part for section in load_recipe(data).reward] == ["exact", "again"]

    def test_frozen(self):
        from pydantic import ValidationError

        with pytest.raises(ValidationError, match="frozen"):
            load_recipe(SMALL).steps = 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (with_("sampling.temprature", 1.0), r"sampling\.temprature.*did you mean 'temperature'"),
            (with_("algorithm.kl.coeficient", 0.1), r"algorithm\.kl\.coeficient.*did you mean 'coefficient'"),
            (with_("policy.lora.rnk", 4), r"policy\.lora\.rnk.*did you mean 'rank'"),
            (with_("sampling.temperature", 0.0), r"sampling\.temperature = 0\.0: .*greater than 0"),
            (with_("sampling.temperature", float("nan")), r"sampling\.temperature = nan"),
            (with_("sampling.top_p", 1.5), r"sampling\.top_p = 1\.5: .*less than or equal to 1"),
            (with_("steps", 2.0), r"steps = 2\.0: .*integer"),
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

    def test_k1_is_fine_in_the_reward_and_where_it_has_no_weight(self):
        load_recipe(with_("algorithm.kl", {"coefficient": 0.1, "estimator": "k1", "where": "reward"}))
        load_recipe(with_("algorithm.kl", {"coefficient": 0.0, "estimator": "k1", "where": "loss"}))

    @pytest.mark.parametrize("algorithm", [name for name, preset in PRESETS.items() if preset.needs_group])
    def test_one_sample_has_nothing_to_be_compared_with(self, algorithm):
        with pytest.raises(InputError, match="samples_per_prompt must be at least 2"):
            load_recipe(SMALL, [f"algorithm.use={algorithm}", "sampling.samples_per_prompt=1"])
        load_recipe(SMALL, ["algorithm.use=reinforce", "sampling.samples_per_prompt=1"])

    @given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=4))
    def test_nonsense_is_an_input_error_and_nothing_else(self, data):
        with pytest.raises(InputError):
            load_recipe(data)

    @given(st.text(max_size=20))
    def test_any_override_works_or_is_an_input_error(self, override):
        try:
            found = load_recipe(SMALL, [override])
        except InputError as error:
            assert str(error)
        else:
            assert isinstance(found, Recipe)
