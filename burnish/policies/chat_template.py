"""A conversation as token ids, through the chat template that a model was tuned with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burnish.errors import InputError
from burnish.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """The prompt's messages as the template writes them, followed by what begins the assistant's answer.

    Raises:
        InputError: the tokenizer has no chat template, or its template refuses these messages (some take no system
            message, or only turns that alternate).
    """
    import jinja2

    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"prompt '{prompt.id}' is a conversation and the model has no chat template: set task.chat = false, or "
            "choose a model that was tuned for chat"
        )
    messages: list[dict[str, str]] = [{"role": message.role, "content": message.content} for message in prompt.messages]
    try:
        ids: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    except jinja2.TemplateError as error:
        raise InputError(
            f"prompt '{prompt.id}': the model's chat template refuses its messages ({error}): their roles are "
            f"{', '.join(message.role for message in prompt.messages)}"
        ) from error
    return tuple(ids)
