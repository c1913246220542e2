"""A language model that is ready to use: sampling, answers through its chat template, log-probabilities."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from burnish.data.messages import read_message
from burnish.errors import InputError
from burnish.generation.rows import RowSampler
from burnish.registry import Registry, nearest
from burnish.supervised.sources import SOURCES
from burnish.tasks.registry import TASKS
from burnish.types import Completion, Group, Message, Prompt, SamplingParams

MAX_NEW_TOKENS = 256
"""Longest completion by default, in tokens, if the model has as many positions."""

CONVERSATIONS = "conversations"
"""Key of a supervised run's data.json: the number of rows that went through the chat template."""
OnText = Callable[[str], None]
Conversation = str | Sequence[Message | Mapping[str, Any]]
"""A user's message, or all messages of a conversation, oldest first."""


class LoadedModel:
    """A model of ``burnish.load``.

    Methods that sample take the fields of ``SamplingParams`` as options: ``max_new_tokens``, ``temperature`` (0 takes
    the most probable token), ``top_p``, ``top_k`` and so on. Results depend on ``seed`` and nothing else.

    Attributes:
        name: as given to ``burnish.load``.
        has_chat_template: whether the model can answer conversations.
        plain: whether ``generate`` continues its text by default instead of answering it as a user's message: the
            model has no chat template, or its run trained on plain text.
    """

    def __init__(self, name: str, sampler: RowSampler, *, plain: bool = False) -> None:
        self.name = name
        self._sampler = sampler
        self._text_model: Any = sampler.text_model
        chat = getattr(self._text_model, "chat", None)
        self.has_chat_template = chat is not None and bool(chat.source)
        self.plain = plain or not self.has_chat_template

    def __repr__(self) -> str:
        template = "a chat template" if self.has_chat_template else "no chat template"
        return f"<LoadedModel {self.name!r}: {template}, {self.max_positions or 'any number of'} positions>"

    @property
    def max_positions(self) -> int | None:
        """Maximum number of tokens of a prompt and its completion together; None if there is no limit."""
        positions: int | None = self._text_model.max_positions
        return positions

    def generate(
        self,
        prompt: str,
        *,
        samples: int = 1,
        system: str = "",
        plain: bool | None = None,
        seed: int = 0,
        on_text: OnText | None = None,
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Sample completions of a prompt; ``completion.text`` is the text.

        Args:
            system: a system message before the prompt.
            plain: True continues the prompt's text, False answers it through the chat template; see ``plain`` above.
            on_text: for a single sample; called after each token with the text that is new, which may be empty.
            sampling: what ``options`` change; by default ``SamplingParams(256)``, or fewer tokens if no more fit.

        Raises:
            InputError: an option is wrong, the prompt does not fit, or the model has no chat template and needs one.
        """
        asked = self.prompt(prompt, system=system, plain=plain)
        (group,) = self.sample([asked], samples=samples, seed=seed, on_text=on_text, sampling=sampling, **options)
        return list(group.completions)

    def chat(
        self,
        messages: Conversation,
        *,
        system: str = "",
        seed: int = 0,
        on_text: OnText | None = None,
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> str:
        """Return the model's answer to a message or a conversation, through its chat template.

        ``messages`` is a user's message, or a list of ``{"role": ..., "content": ...}``. Arguments and errors are
        those of ``generate``.
        """
        asked = self.prompt(messages, system=system, plain=False)
        (group,) = self.sample([asked], seed=seed, on_text=on_text, sampling=sampling, **options)
        return group.completions[0].text

    def logprobs(
        self, prompt: Conversation, completion: str | Completion, *, system: str = "", plain: bool | None = None
    ) -> np.ndarray:
        """Return the log-probability of each token of a completion after its prompt, nats, under the full softmax.

        The prompt is read as in ``generate``. A text does not include the token that ends it; a ``Completion`` does.
        """
        asked = self.prompt(prompt, system=system, plain=plain)
        if isinstance(completion, str):
            options = {} if asked.text or asked.messages else {"begins": True}
            text, tokens = completion, self._text_model.encode(completion, **options)
        else:
            text, tokens = completion.text, completion.token_ids
        read = Completion(asked, self._text_model.encode_prompt(asked), tuple(tokens), text, (), "stop")
        array: np.ndarray = self._text_model.token_logprobs([read]).numpy()
        return array

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int = 1,
        seed: int = 0,
        on_text: OnText | None = None,
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> list[Group]:
        """Sample completions of several prompts, which ``prompt`` makes; arguments are those of ``generate``."""
        params = self._params(prompts, sampling, options)
        return self._sampler.sample(
            prompts, samples_per_prompt=samples, sampling=params, seed=(seed,), on_text=on_text
        )  # fmt: skip

    def prompt(
        self, messages: Conversation, *, system: str = "", plain: bool | None = None, name: str = "prompt"
    ) -> Prompt:
        """Return a text or a conversation as a prompt; the random numbers of its samples depend on ``name``."""
        is_text = isinstance(messages, str)
        if plain is None:
            plain = self.plain and is_text and not system
        if plain:
            if system or not isinstance(messages, str):
                raise InputError(
                    "a system message and a conversation need the chat template, which plain=True leaves out"
                )
            return Prompt(name, messages)
        if not self.has_chat_template:
            raise InputError(
                f"'{self.name}' has no chat template, so it cannot answer messages: choose a model that was tuned for "
                "chat, or continue a text with burnish generate"
            )
        turns = [Message("user", messages)] if isinstance(messages, str) else [_message(one) for one in messages]
        if system:
            turns.insert(0, Message("system", system))
        return Prompt(name, "\n".join(turn.content for turn in turns if turn.role != "system"), messages=tuple(turns))

    def count_tokens(self, prompt: Prompt) -> int:
        """Return the number of tokens of a prompt."""
        return len(self._text_model.encode_prompt(prompt))

    def _params(
        self, prompts: Sequence[Prompt], sampling: SamplingParams | None, options: Mapping[str, Any]
    ) -> SamplingParams:
        known = [field.name for field in fields(SamplingParams)]
        for name in options:
            if name not in known:
                raise InputError(f"unknown option '{name}'{nearest(name, known)}; known: {', '.join(known)}")
        if sampling is None:
            longest = max(map(self.count_tokens, prompts), default=0)
            room = MAX_NEW_TOKENS if self.max_positions is None else self.max_positions - longest
            sampling = SamplingParams(max(1, min(MAX_NEW_TOKENS, room)))
        params = replace(sampling, **options)
        stop = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop)
        params = replace(params, stop=stop, stop_token_ids=tuple(params.stop_token_ids))
        for name, lowest, highest in (("max_new_tokens", 1, np.inf), ("temperature", 0, np.inf), ("top_k", 0, np.inf)):
            if not lowest <= getattr(params, name) <= highest:
                raise InputError(f"{name} = {getattr(params, name)}: must be at least {lowest}")
        if not 0 < params.top_p <= 1:
            raise InputError(f"top_p = {params.top_p}: must be above 0 and at most 1")
        if not 0 <= params.min_p <= 1:
            raise InputError(f"min_p = {params.min_p}: must be at least 0 and at most 1")
        if not 0 <= params.min_new_tokens <= params.max_new_tokens:
            raise InputError(f"min_new_tokens = {params.min_new_tokens}: must be at most {params.max_new_tokens}")
        if "" in stop:
            raise InputError("stop: an empty text would end every completion at its first token; remove it")
        # One token, the most probable, is left of the distribution at any temperature.
        return replace(params, temperature=1.0, top_k=1) if params.temperature == 0 else params


def _message(value: Message | Mapping[str, Any]) -> Message:
    try:
        return value if isinstance(value, Message) else read_message(value)
    except ValueError as error:
        raise InputError(str(error)) from error


def read_run_tables(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of a run's recipe by name; none if the folder is not a run with a model."""
    if not ((folder / "recipe.toml").is_file() and (folder / "model").is_dir()):
        return {}
    try:
        written = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    except ValueError:  # loading the model reports it
        return {}
    tables = {name: table for name, table in written.items() if isinstance(table, dict)}
    with suppress(OSError, ValueError, TypeError, KeyError):
        tables["data"][CONVERSATIONS] = json.loads((folder / "data.json").read_text(encoding="utf-8"))[CONVERSATIONS]
    return tables


def trains_on_plain_text(tables: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether the prompts of a run's task or data did not go through a chat template, by its recipe."""
    section = tables.get("task") or tables.get("data") or {}
    use = section.get("use")
    if "task" not in tables and use in ("data", "jsonl"):
        return not section.get(CONVERSATIONS, section.get("format") == "chat")
    registry: Registry[Any] = TASKS if "task" in tables else SOURCES
    if use not in registry.names():  # a class of the user's own
        return False
    made = registry.get(use)
    chat = inspect.signature(made).parameters.get("chat")
    if chat is None:  # one of burnish's own that never makes a conversation, or a plug-in that may
        return str(made.__module__).startswith("burnish.")
    return not section.get("chat", chat.default)
