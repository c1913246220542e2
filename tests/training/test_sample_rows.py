from __future__ import annotations

from types import SimpleNamespace

import torch

from burnish.training.metrics import sample_rows
from burnish.types import Message, Prompt


def row(prompt: Prompt) -> dict[str, object]:
    completion = SimpleNamespace(prompt=prompt, text="hello", finish_reason="stop", token_ids=(1, 2))
    rollouts = SimpleNamespace(scores=SimpleNamespace(parts={}), completions=[completion], flags=[("insult",)])
    (only,) = sample_rows(3, rollouts, torch.ones(1), torch.zeros(1), None)
    return only


def test_a_conversation_is_recorded_with_its_messages():
    prompt = Prompt("id", "hi", messages=(Message("system", "Be kind."), Message("user", "hi")))
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert row(prompt)["messages"] == messages


def test_plain_text_has_no_messages():
    assert "messages" not in row(Prompt("id", "hi")) and row(Prompt("id", "hi"))["flags"] == ["insult"]
