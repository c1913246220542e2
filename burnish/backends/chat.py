"""Settings of the chat template, from a recipe's section and the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from burnish.errors import InputError
from burnish.policies.causal_lm import CausalModel
from burnish.policies.chat_template import ChatSettings
from burnish.protocols import Observer, Policy
from burnish.recipe.sections import ChatSection
from burnish.run.folder import CHAT_TEMPLATE
from burnish.system.files import explained, write_text
from burnish.system.paths import expanded
from burnish.types import Prompt


def chat_settings(section: ChatSection, folder: Path | None = None) -> ChatSettings:
    """Return the settings of a ``[task]`` or ``[data]`` table.

    Args:
        folder: the run folder, which keeps a copy of an own template; a resumed run uses the copy.

    Raises:
        InputError: the template cannot be read.
    """
    template = None
    if section.template_file is not None:
        copy = None if folder is None else folder / CHAT_TEMPLATE
        path = copy if copy is not None and copy.exists() else expanded(section.template_file)
        try:
            template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"template = '{section.template_file}' cannot be read: {error}") from error
        if copy is not None and path != copy:
            with explained(f"cannot write {copy}"):
                write_text(copy, template)
    return ChatSettings(template, section.template_kwargs or {})


def check_conversations(model: Policy, prompts: Sequence[Prompt], observer: Observer | None) -> None:
    """Try the model's chat template on the prompts' roles, and report what it does to the messages.

    Raises:
        InputError: it rejects the messages of a prompt, or leaves one out.
    """
    assert isinstance(model, CausalModel)
    conversations = [prompt for prompt in prompts if prompt.messages]
    seen: set[tuple[str, ...]] = set()
    for prompt in conversations:
        roles = tuple(message.role for message in prompt.messages)
        if roles not in seen:
            seen.add(roles)
            model.encode_prompt(prompt)
    if observer is None:
        return
    notes = model.chat.notes([prompt.messages for prompt in conversations]) if conversations else []
    texts = [" ".join([prompt.text, *(message.content for message in prompt.messages)]) for prompt in prompts]
    forged = [prompt.id for prompt, text in zip(prompts, texts, strict=True) if model.controls.broken(text) != text]
    if forged:
        notes.append(
            f"{len(forged)} prompts contain control tokens, such as '{forged[0]}': they are read as text; give "
            "conversations as messages"
        )
    for note in notes:
        observer.message(note, level="warning")
