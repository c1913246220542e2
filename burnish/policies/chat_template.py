"""Token ids of conversations, by the model's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burnish.errors import InputError
from burnish.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """Return the token ids of a prompt's messages, followed by the start of the assistant's answer.

    Raises:
        InputError: the tokenizer has no chat template, or its template rejects these messages (some accept no system
            message, or require alternating roles).
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
