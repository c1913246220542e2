"""Prompts without references: rewards that need one are refused before a model is loaded, the others work."""

from __future__ import annotations

import pytest

from burnish.backends.local import build
from burnish.backends.preflight import check_languages, check_prompts, check_references
from burnish.backends.prompts import task_prompts
from burnish.errors import InputError
from burnish.recipe.schema import load_recipe
from burnish.rewards.combine import combine
from burnish.types import Completion, Message, Prompt
from tests.fakes import RecordingObserver


class Unlabelled:
    """Two sides of prompts, of which one has a blank reference and the others none."""

    def train(self):
        return [Prompt("a", "x"), Prompt("b", "y", "  ")]

    def evaluation(self):
        return [Prompt("c", "z"), Prompt("d", "w", "an answer")]


@pytest.mark.parametrize("reward", ["bleu", "chrf", "ter", "rouge_l", "exact"])
def test_refused_before_the_model_is_loaded(reward, monkeypatch):
    monkeypatch.setattr("burnish.backends.local.build_policy", lambda *_, **__: pytest.fail("loaded a model"))
    recipe = load_recipe({"name": "x", "reward": [{"use": "repetition"}, {"use": reward}]})
    monkeypatch.setattr(
        "burnish.backends.local.task_prompts", lambda *_, **__: (Unlabelled().train(), Unlabelled().evaluation())
    )
    with pytest.raises(
        InputError,
        match=rf"reward\.1: '{reward}' needs a reference, but 3 prompts of task 'news' have none, such as 'a'",
    ) as e:
        build(recipe)
    assert "\n" not in str(e.value) and e.value.exit_status == 2


def test_refused_by_the_reward_itself_where_nobody_looked_before():
    done = Completion(Prompt("p", "x"), (1,), (2,), "text", (0.0,), "length")
    with pytest.raises(InputError, match="'bleu' needs a reference, but prompt 'p' has none"):
        combine({"bleu": 1.0}).score([done])


def test_rewards_that_need_none_are_let_through():
    recipe = load_recipe(
        {"name": "x", "task": {"use": "toy"}, "reward": [{"use": "repetition"}, {"use": "perplexity"}]}
    )
    check_references(recipe, Unlabelled().train())
    recipe = load_recipe({"name": "x", "task": {"use": "toy"}, "reward": [{"use": "exact"}]})
    check_references(recipe, [Prompt("a", "", "there is one")])


@pytest.mark.model
def test_the_shipped_recipe_withholds_them_all():
    train, held_out = task_prompts(load_recipe("unlabelled"), offline=True)
    assert all(prompt.reference is None for prompt in [*train, *held_out])
    labelled, _ = task_prompts(load_recipe("news"), offline=True)
    assert [prompt.text for prompt in labelled] == [prompt.text for prompt in train]


CHINESE = [Prompt("a", "从前有一只狐狸", "它想吃葡萄。"), Prompt("b", "山里", "老虎 came")]


@pytest.mark.parametrize("use", ["grammar", "similarity"])
@pytest.mark.parametrize("where", ["reward", "metric"])
def test_a_reward_that_knows_english_only_is_refused_chinese_references(use, where):
    reward = [{"use": "repetition"}, {"use": use}] if where == "reward" else [{"use": "repetition"}]
    metrics = [use] if where == "metric" else []
    recipe = load_recipe({"name": "x", "reward": reward, "evaluation": {"metrics": metrics}})
    with pytest.raises(
        InputError, match=f"'{use}' reads English only, but most references of task 'news' are not"
    ) as error:
        check_languages(recipe, CHINESE)
    assert ("name a model that knows their language" in str(error.value)) == (use == "similarity")
    check_languages(recipe, [Prompt("a", "把这句话译成英文：你好", "Hello.")])


def test_chinese_prompts_without_references_are_a_warning():
    observer = RecordingObserver()
    recipe = load_recipe({"name": "x", "reward": [{"use": "grammar"}]})
    check_languages(recipe, [Prompt("a", "从前有一只狐狸")], observer)
    ((level, text),) = observer.messages
    assert level == "warning" and "answers in other languages score about 0" in text


def test_another_model_of_meaning_may_know_chinese():
    recipe = load_recipe({"name": "x", "reward": [{"use": "similarity", "model": "/models/chinese"}]})
    check_languages(recipe, CHINESE)


def test_conversations_are_refused_to_a_policy_without_a_template_before_it_is_made():
    talk = Prompt("talk", "hello", messages=(Message("user", "hello"),))
    recipe = load_recipe({"name": "x", "policy": {"use": "lstm"}, "reward": [{"use": "repetition"}]})
    with pytest.raises(InputError, match=r"'talk' is a conversation, .* set task.chat = false"):
        check_prompts(recipe, [Prompt("a", "b"), talk])
    check_prompts(load_recipe({"name": "x", "reward": [{"use": "repetition"}]}), [talk])
