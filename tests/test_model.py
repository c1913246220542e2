"""A loaded model, as a user of Python has it: generate, chat and logprobs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import burnish
from burnish.model import read_run_tables, trains_on_plain_text
from burnish.types import Message, Prompt, SamplingParams

QUESTION = "who sang"


@pytest.fixture(scope="module")
def talker(tiny_chat):
    return burnish.load(tiny_chat)


@pytest.fixture(scope="module")
def plain(tiny):
    return burnish.load(tiny("llama"))


class TestPrompt:
    def test_a_text_is_a_message_where_there_is_a_template(self, talker, plain):
        assert talker.prompt(QUESTION) == Prompt("prompt", QUESTION, messages=(Message("user", QUESTION),))
        assert talker.prompt(QUESTION, plain=True) == plain.prompt(QUESTION) == Prompt("prompt", QUESTION)

    def test_a_system_message_comes_first(self, talker):
        messages = (Message("system", "be brief"), Message("user", QUESTION))
        assert talker.prompt(QUESTION, system="be brief").messages == messages

    def test_a_conversation_of_dicts(self, talker):
        roles = ["user", "assistant", "user"]
        asked = talker.prompt([{"role": role, "content": role[0]} for role in roles])
        assert asked.messages == tuple(Message(role, role[0]) for role in roles)

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            ({"role": "robot", "content": "a"}, "role 'robot': known roles are system, developer, user"),
            ({"role": "user"}, "has no text as its content"),
            ("who", "a message is text, not an object"),
        ],
    )
    def test_a_wrong_message(self, talker, message, reason):
        with pytest.raises(burnish.InputError, match=reason):
            talker.chat([message])

    @pytest.mark.parametrize("options", [{"plain": False}, {"system": "s"}])
    def test_without_a_template(self, plain, options):
        with pytest.raises(burnish.InputError, match=r"has no chat template, .* continue a text with burnish generate"):
            plain.generate(QUESTION, **options)
        with pytest.raises(burnish.InputError, match="has no chat template"):
            plain.chat(QUESTION)

    def test_plain_text_has_no_system_message(self, talker):
        with pytest.raises(burnish.InputError, match="need the chat template"):
            talker.generate(QUESTION, system="s", plain=True)


class TestSampling:
    def test_the_answer_follows_the_template(self, talker):
        (completion,) = talker.generate(QUESTION, max_new_tokens=4)
        written = talker._text_model.tokenizer.decode(list(completion.prompt_ids), skip_special_tokens=False)
        assert written == "<user>who sang<|end|><assistant>"
        assert talker.chat(QUESTION, max_new_tokens=4) == completion.text

    def test_temperature_0_is_the_likeliest_token_each_time(self, plain):
        (completion,) = plain.generate(QUESTION, temperature=0, max_new_tokens=12)
        model = plain._text_model.model
        ids = torch.tensor([completion.prompt_ids])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        assert list(completion.token_ids) == expected[0, ids.shape[1] :].tolist()
        assert completion.sampler_logprobs == (0.0,) * len(completion.token_ids)

    def test_options_change_the_sampling_parameters(self, plain):
        both = plain.generate(QUESTION, sampling=SamplingParams(5, top_k=3), seed=1, samples=2)
        assert both == plain.generate(QUESTION, max_new_tokens=5, top_k=3, seed=1, samples=2)
        assert both == burnish.generate(plain.name, QUESTION, max_new_tokens=5, top_k=3, seed=1, samples=2)
        assert len(both) == 2

    def test_the_default_length_fits_the_positions(self, plain):
        text = "the " * 200
        tokens = plain.count_tokens(plain.prompt(text))
        (completion,) = plain.generate(text, seed=0)
        assert 256 > tokens > 200 and tokens + len(completion.token_ids) <= 256

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"temprature": 1.0}, r"unknown option 'temprature' \(did you mean 'temperature'"),
            ({"temperature": -1.0}, "temperature = -1.0: must be at least 0"),
            ({"max_new_tokens": 0}, "max_new_tokens = 0: must be at least 1"),
            ({"top_p": 1.5}, "top_p = 1.5: must be above 0 and at most 1"),
        ],
    )
    def test_a_wrong_option(self, plain, option, message):
        with pytest.raises(burnish.InputError, match=message):
            plain.generate(QUESTION, **option)


def test_logprobs_equal_those_of_transformers(talker):
    found = talker.logprobs(QUESTION, "我 sang")
    prompt = talker._text_model.encode_prompt(talker.prompt(QUESTION))
    answer = talker._text_model.encode("我 sang")
    with torch.no_grad():
        logits = talker._text_model.model(torch.tensor([[*prompt, *answer]])).logits[0]
    full = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    np.testing.assert_allclose(found, full[range(len(answer)), answer].numpy(), atol=1e-5)
    (sampled,) = talker.generate(QUESTION, max_new_tokens=6)
    np.testing.assert_allclose(talker.logprobs(QUESTION, sampled), sampled.sampler_logprobs, atol=1e-5)


def test_the_representation_names_what_matters(talker, plain):
    assert repr(plain) == f"<LoadedModel '{plain.name}': no chat template, 256 positions>"
    assert "a chat template" in repr(talker)


class TestRuns:
    """The default of a run's model is the way that it was trained."""

    @pytest.mark.parametrize(
        ("tables", "plain"),
        [
            ({}, False),
            ({"task": {"use": "news"}}, True),
            ({"task": {"use": "data"}}, False),
            ({"task": {"use": "data", "chat": False}}, True),
            ({"task": {"use": "story"}}, True),
            ({"task": {"use": "story", "chat": True}}, False),
            ({"task": {"use": "jobs:Headlines"}}, False),
            ({"data": {"use": "jsonl", "format": "chat"}}, False),
            ({"data": {"use": "jsonl", "format": "completion"}}, True),
            ({"data": {"use": "translation", "chat": True}}, False),
            ({"data": {"use": "news-pairs"}}, True),
        ],
    )
    def test_by_its_recipe(self, tables, plain):
        assert trains_on_plain_text(tables) == plain

    def test_of_a_folder(self, tmp_path, tiny_chat):
        assert read_run_tables(tmp_path) == {}
        shutil.copytree(tiny_chat, tmp_path / "model")
        (tmp_path / "recipe.toml").write_text('name = "n"\n[task]\nuse = "news"\n')
        assert read_run_tables(tmp_path) == {"task": {"use": "news"}}
        model = burnish.load(tmp_path)
        assert model.plain and model.has_chat_template
        assert model.prompt("a").messages == () != model.prompt("a", plain=False).messages

    def test_the_variables_of_its_template(self, tmp_path, tiny_chat):
        folder = tmp_path / "model"
        shutil.copytree(tiny_chat, folder)
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").write_text(template + "{% if enable_thinking %}<think>{% endif %}")
        (tmp_path / "recipe.toml").write_text('[task]\nuse = "data"\ntemplate_kwargs = { enable_thinking = true }\n')
        trained = burnish.load(tmp_path)
        without = burnish.load(tmp_path, template_kwargs={"enable_thinking": False})
        ids = [model.generate("a", max_new_tokens=1)[0].prompt_ids for model in (trained, without)]
        assert len(ids[0]) > len(ids[1]) and ids[0][: len(ids[1])] == ids[1]


@pytest.mark.model
def test_the_first_word_with_the_built_in_model():
    model = burnish.load("smollm2-135m", offline=True)
    pieces: list[str] = []
    answer = model.chat("What is the capital of France?", temperature=0, max_new_tokens=24, on_text=pieces.append)
    assert answer == "".join(pieces) == "The capital of France is Paris."
    (continued,) = model.generate("The capital of France is", plain=True, temperature=0, max_new_tokens=2)
    assert continued.text == " Paris."
    likely, unlikely = (model.logprobs("The capital of France is", city, plain=True) for city in (" Paris", " Oslo"))
    assert likely.sum() > unlikely.sum() + 1
