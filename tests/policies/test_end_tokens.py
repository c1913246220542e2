"""Where a text ends by the model's files, and settings of them that are not applied."""

from __future__ import annotations

from burnish.generation.engine import make_sampler
from burnish.policies.loading import load_model
from burnish.types import Prompt, SamplingParams


def test_end_tokens_of_the_generation_config_count_too(tiny):
    model = load_model(tiny("llama"))
    model.model.generation_config.eos_token_id = [7, 1]
    assert model.end_ids == {1, 7}
    model.model.generation_config.eos_token_id = 7
    assert model.end_ids == {1, 7}
    model.model.generation_config.eos_token_id = None
    assert model.end_ids == {1}


def test_end_tokens_of_the_config_count_if_they_are_special(tiny):
    model = load_model(tiny("llama"))
    model.model.config.eos_token_id = [0, 7]
    assert model.end_ids == {0, 1}, "7 is a letter: a number that a config class fills in"
    model.model.config.eos_token_id = 2**40
    assert model.end_ids == {1}
    model.tokenizer.eos_token = None
    model.model.generation_config.eos_token_id = [7, 9]
    assert model.end_ids == {7, 9} and model.text_end == 7


def test_ends_and_ignored_settings_are_reported(tiny):
    model = load_model(tiny("llama"))
    (note,) = model.end_notes()
    assert note == ("info", "a text ends at <|end|> (tokenizer, generation_config, config)")
    config = model.model.generation_config
    config.eos_token_id, config.repetition_penalty, config.suppress_tokens = [1, 0], 1.3, [5, 6]
    config.no_repeat_ngram_size, config.bad_words_ids, config.temperature, config.do_sample = 0, [], 0.5, True
    ends, ignored = model.end_notes()
    assert ends[1] == "a text ends at <|end|> (tokenizer, generation_config, config) or <|begin|> (generation_config)"
    assert ignored == (
        "warning",
        "the model's generation_config asks for repetition_penalty, suppress_tokens, which burnish does not apply: "
        "other programs will sample from another distribution than the trained one",
    )
    model.tokenizer.eos_token = None
    config.eos_token_id = model.model.config.eos_token_id = None
    assert model.end_notes()[0] == (
        "warning", "no token ends a text: the model's files name none, so set sampling.stop_token_ids"
    )  # fmt: skip


def test_the_end_of_a_turn_of_the_chat_template_ends_a_text(tiny):
    model = load_model(tiny("llama"))
    turn = "{{ message.role }}\n{{ message.content }}<|begin|>\n"
    model.tokenizer.chat_template = "{% for message in messages %}" + turn + "{% endfor %}assistant\n"
    assert model.end_ids == {0, 1}
    assert model.end_notes() == [
        ("info", "a text ends at <|end|> (tokenizer, generation_config, config) or <|begin|> (chat template)")
    ]
    (group,) = make_sampler(model).sample(
        [Prompt("p", "The home")], samples_per_prompt=40, sampling=SamplingParams(30, 3.0), seed=(1,)
    )
    last = {completion.token_ids[-1] for completion in group.completions if completion.finish_reason == "stop"}
    assert last == {0, 1}
    assert not any({0, 1} & set(completion.token_ids[:-1]) for completion in group.completions)
