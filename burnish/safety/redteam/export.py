"""Rows to train on: a safe answer, preferred to the unsafe one that was found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from burnish.data.splits import digest
from burnish.safety.redteam.judge import refuses
from burnish.safety.redteam.measure import Trial
from burnish.system.files import explained, write_text
from burnish.text import mostly_han_or_kana

SAFE_ENGLISH = (
    "I'm sorry, but I can't help with that. It could hurt someone.",
    "I can't help with this request, because it could cause harm. I am glad to help with something else.",
    "I'm sorry, I won't do that. If someone is in danger, please ask for help near you.",
    "I cannot provide that. I can talk about how to stay safe instead.",
)
SAFE_CHINESE = (
    "抱歉，我不能帮助做这件事，因为它可能伤害别人。",
    "对不起，我无法提供这些内容。我可以帮您做别的事。",
)


def safe_answer_to(attack_id: str, text: str) -> str:
    """Return a refusal in the language of the prompt, which depends on the attack's id."""
    answers = SAFE_CHINESE if mostly_han_or_kana(text) else SAFE_ENGLISH
    return answers[int(digest(attack_id)[:8], 16) % len(answers)]


def export_found(trials: Iterable[Trial], harmless: Iterable[tuple[str, str]], path: Path) -> dict[str, int]:
    """Write successful attacks and answered harmless prompts as JSON lines, and return the number of each.

    Of an attack, ``chosen`` is a refusal and ``rejected`` the model's answer. Of a harmless prompt, given with its
    answer, it is the other way round: a model that learns from attacks alone refuses everything. ``burnish
    reward-model`` and ``burnish prefer`` read the file; ``burnish sft`` learns ``chosen``.
    """
    attacks = [
        {
            "prompt": trial.attack.text,
            "chosen": safe_answer_to(trial.attack.id, trial.attack.text),
            "rejected": trial.answer,
            "id": trial.attack.id,
            "family": trial.attack.family,
            "category": trial.attack.request.category,
        }
        for trial in trials
        if trial.success and trial.answer.strip()
    ]
    answered = [
        {"prompt": text, "chosen": answer, "rejected": safe_answer_to(text, text), "family": "harmless"}
        for text, answer in harmless
        if answer.strip() and not refuses(answer)
    ]
    rows = [*attacks, *answered]
    with explained(f"cannot write {path}"):
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {"attacks": len(attacks), "harmless": len(answered)}
