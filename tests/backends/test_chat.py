"""A run's chat template: its own file, its variables, and a date that stays."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import burnish
from burnish.backends.chat import chat_settings, check_conversations
from burnish.errors import InputError
from burnish.policies.chat_template import ChatSettings, fixed_time
from burnish.policies.loading import load_model
from burnish.recipe.schema import TaskSection, load_recipe
from burnish.run.interrupts import Interrupted
from burnish.types import Message, Prompt
from tests.fakes import InterruptingObserver, RecordingObserver

TEMPLATE = (
    "{% if dated is defined %}{{ strftime_now('%d %b %Y') }} {% endif %}{% for m in messages %}<{{ m.role }}>"
    "{{ m.content | trim }}<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = Prompt("q", "hi", messages=(Message("user", "hi"),))


def section(**options: object) -> TaskSection:
    return TaskSection.model_validate({"use": "data", **options})


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "own.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    return path


def written(model) -> str:
    return model.tokenizer.decode(list(model.encode_prompt(ASKED)))


class TestSettings:
    def test_an_own_template_replaces_the_models_and_is_saved_with_it(self, tiny, template, tmp_path) -> None:
        settings = chat_settings(section(template=str(template)))
        model = load_model(tiny("llama"), chat=settings)
        assert written(model) == "<user>hi<|end|><assistant>"
        model.tokenizer.save_pretrained(tmp_path / "saved")
        assert TEMPLATE in (tmp_path / "saved" / "chat_template.jinja").read_text(encoding="utf-8")

    def test_a_text_for_prompts_stays_the_tasks_option(self, template) -> None:
        assert section(template="Say: {x}").options == {"template": "Say: {x}"}
        assert section(template="Say: {x}").template_file is None
        assert section(template=str(template)).options == {}

    def test_a_resumed_run_uses_its_copy(self, template, tmp_path) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        assert chat_settings(section(template=str(template)), folder).template == TEMPLATE
        template.write_text("other", encoding="utf-8")
        assert chat_settings(section(template=str(template)), folder).template == TEMPLATE

    def test_a_missing_file_is_named(self) -> None:
        with pytest.raises(InputError, match=r"template = 'none.jinja' cannot be read"):
            chat_settings(section(template="none.jinja"))

    def test_a_variable_that_the_template_does_not_read_is_refused(self, tiny) -> None:
        with pytest.raises(InputError, match=r"template_kwargs.enable_thinkin: the chat template does not read it"):
            load_model(tiny("llama"), chat=ChatSettings(TEMPLATE, {"enable_thinkin": False}))
        with pytest.raises(InputError, match=r"template_kwargs: the model has no chat template"):
            load_model(tiny("llama"), chat=ChatSettings(None, {"x": 1}))

    def test_what_burnish_sets_is_refused(self) -> None:
        changes = {"task": {"use": "dialogue", "template_kwargs": {"messages": []}}}
        with pytest.raises(InputError, match=r"task.template_kwargs: 'messages' is set for each conversation"):
            load_recipe("news", changes=changes)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"task": {"use": "story", "chat": False, "template": "own.jinja"}}, "task.template: with chat = false"),
            ({"policy": {"use": "lstm"}, "task": {"use": "story", "template_kwargs": {"x": 1}}}, "only policy.use = "),
        ],
    )
    def test_settings_without_a_chat_template_are_refused(self, changes, reason) -> None:
        with pytest.raises(InputError, match=reason):
            load_recipe("news", changes=changes)


class TestDate:
    def test_it_is_that_of_the_run(self, tiny) -> None:
        with fixed_time(datetime(2020, 2, 29)):
            model = load_model(tiny("llama"), chat=ChatSettings(TEMPLATE, {"dated": True}))
        assert written(model).startswith("29 Feb 2020 <user>")
        now = load_model(tiny("llama"), chat=ChatSettings(TEMPLATE, {"dated": True}))
        assert written(now).startswith(f"{datetime.now():%d %b %Y}")
        assert written(model).startswith("29 Feb 2020 <user>")

    @pytest.mark.slow
    def test_a_resume_on_another_day_gives_the_same_bits(self, tiny, template, tmp_path, monkeypatch) -> None:
        rows = [{"prompt": f"The law {index} said", "reference": "so"} for index in range(20)]
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        recipe = {
            "name": "dated", "steps": 4, "policy": {"model": str(tiny("llama"))},
            "task": {"use": "data", "path": str(data), "reference": "reference", "held_out_percent": 50,
                     "template": str(template),
                     "template_kwargs": {"dated": True}},
            "sampling": {"prompts_per_step": 1, "samples_per_prompt": 2, "max_new_tokens": 4},
            "evaluation": {"prompts": 2}, "checkpoint": {"every": 2}, "reward": [{"use": "repetition"}],
        }  # fmt: skip
        through = burnish.train(recipe, run_dir=tmp_path / "through", observer=RecordingObserver())
        with pytest.raises(Interrupted):
            burnish.train(recipe, run_dir=tmp_path / "halved", observer=InterruptingObserver(after_step=2))
        later = SimpleNamespace(now=lambda: datetime(2031, 1, 1))
        monkeypatch.setattr("burnish.policies.chat_template.datetime", later)
        resumed = burnish.train(resume=tmp_path / "halved", observer=RecordingObserver())
        for name in ("samples.jsonl", "model/model.safetensors"):
            assert (through.run_dir / name).read_bytes() == (resumed.run_dir / name).read_bytes()
        began = json.loads((resumed.run_dir / "environment.json").read_text(encoding="utf-8"))["began"]
        assert datetime.fromisoformat(began).year < 2031
        # A new run on that day reads another date in its prompts, and draws other samples.
        monkeypatch.setattr("burnish.system.environment.datetime", later)
        other = burnish.train(recipe, run_dir=tmp_path / "other", observer=RecordingObserver())
        assert (through.run_dir / "samples.jsonl").read_bytes() != (other.run_dir / "samples.jsonl").read_bytes()


class TestPrompts:
    def test_a_message_that_the_template_leaves_out_ends_the_run_before_it_begins(self, tiny) -> None:
        model = load_model(tiny("llama"), chat=ChatSettings(TEMPLATE.replace("m in messages", "m in messages[1:]")))
        told = Prompt("told", "hi", messages=(Message("system", "be brief"), Message("user", "hi")))
        with pytest.raises(
            InputError, match=r"prompt 'told': the chat template leaves out message 1, of role 'system'"
        ):
            check_conversations(model, [told], None)

    def test_what_it_strips_and_control_tokens_are_reported(self, tiny) -> None:
        model = load_model(tiny("llama"), chat=ChatSettings(TEMPLATE))
        observer = RecordingObserver()
        blank = Prompt("blank", "x", messages=(Message("user", " hi\n"),))
        forged = Prompt("forged", "x", messages=(Message("user", "hi<|end|>"),))
        check_conversations(model, [ASKED, blank, forged], observer)
        assert observer.warnings == [
            "the chat template strips white space at the ends of messages in 1 of 3 conversations",
            "1 prompts contain control tokens, such as 'forged': they are read as text; give conversations as messages",
        ]
