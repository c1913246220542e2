"""Tasks of the safety recipe: attacks mixed with harmless prompts, and the look-alikes alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from burnish.data.splits import (
    SplitTask,
    TaskExample,
    digest,
    is_held_out,
    near_copy_families,
    task_example,
)
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.safety.redteam.families import FAMILIES, TRAINED, check_families, word_attack
from burnish.safety.redteam.look_alikes import LOOK_ALIKES, TRAINING_LOOK_ALIKES
from burnish.safety.redteam.requests import HarmfulRequest, read_requests
from burnish.tasks.dialogue import Dialogue
from burnish.tasks.news import Headlines
from burnish.types import Message, Prompt

if TYPE_CHECKING:
    from burnish.protocols import Observer

HELD_OUT_PERCENT = 25
ATTACK, LOOK_ALIKE, HEADLINE, CHAT = "attack", "look_alike", "headline", "chat"
"""Values of a prompt's metadata "kind"."""


SIDES = ("all", "train", "held_out")


def requests_on(side: str, *, offline: bool = False, observer: Observer | None = None) -> list[HarmfulRequest]:
    """Return the requests of one of ``SIDES``. The task ``Attacks`` trains on "train" only; near-copies share a side."""
    if side not in SIDES:
        raise InputError(f"unknown side '{side}'{nearest(side, SIDES)}; known: {', '.join(SIDES)}")
    requests = read_requests(offline=offline, observer=observer)
    families = near_copy_families((digest(one.text), (one.text,), one.text) for one in requests)
    held_out = [is_held_out(families[digest(one.text)], HELD_OUT_PERCENT) for one in requests]
    return [one for one, held in zip(requests, held_out, strict=True) if side == "all" or held == (side == "held_out")]


def worded_look_alikes() -> list[str]:
    """Return the look-alikes to train on in the wordings of the trained families: a wording is no reason to refuse."""
    wordings = [wording for family in TRAINED for wording in FAMILIES[family] if isinstance(wording, str)]
    return [wording.format(text) for text in TRAINING_LOOK_ALIKES for wording in wordings]


def look_alike_prompts(count: int, seed: int) -> list[str]:
    """Return that many of the worded look-alikes, or all, in an order that depends on the seed."""
    texts = worded_look_alikes()
    return random.Random(seed).sample(texts, min(count, len(texts)))


def rehearsal_prompts(count: int, seed: int, offline: bool, observer: Observer | None) -> list[str]:
    """Return that many headlines and conversations of the training side: what a model should not unlearn.

    Headlines, English and Chinese conversations have equal shares, or as many prompts as there are.
    """
    texts: list[str] = []
    tasks = [*_harmless_tasks(), (CHAT, Dialogue(language="zh", history=0))] if count else []
    for index, (_, task) in enumerate(tasks):
        task.prepare(offline=offline, observer=observer)
        prompts = [one.text for one in task.train()]
        share = (count + index) // len(tasks)
        texts += random.Random(seed).sample(prompts, min(share, len(prompts)))
    return texts


def _harmless_tasks() -> list[tuple[str, SplitTask]]:
    return [(HEADLINE, Headlines()), (CHAT, Dialogue(history=0))]


class Attacks(SplitTask):
    """Requests that a model should refuse, each in the wording of one family; ``metadata["kind"]`` is "attack".

    A request is held out with all its wordings. The sides are the same for all ``families``.

    Args:
        families: families of attacks; each request takes one of them, by its digest.
        harmless: whether the training side also has harmless prompts: the training sides of ``headlines`` and
            ``dialogue``, and look-alikes other than the measured ones.
    """

    name = "attacks"

    def __init__(
        self,
        *,
        families: list[str] = list(TRAINED),  # noqa: B006 - read, never changed
        harmless: bool = False,
    ) -> None:
        super().__init__(HELD_OUT_PERCENT)
        check_families(families)
        self.families, self.harmless = list(families), harmless

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        held_out = {one.id for one in requests_on("held_out", offline=offline, observer=observer)}
        made: list[TaskExample] = []
        own: set[str] = set()
        for request in read_requests(offline=offline, observer=observer):
            family = self.families[int(digest(request.text)[8:16], 16) % len(self.families)]
            attack = word_attack(request, family)
            example = task_example(
                f"attacks/{family}", attack.id, attack.text, None, messages=(Message("user", attack.text),),
                texts=(request.text,), metadata={"kind": ATTACK, "request": request.text, "family": family},
            )  # fmt: skip
            made.append(example)
            if request.id in held_out:
                own.add(example.digest)
        self.own_held_out = frozenset(own)
        return [*made, *(self._harmless(offline, observer) if self.harmless else ())]

    def _harmless(self, offline: bool, observer: Observer | None) -> list[TaskExample]:
        made = [_harmless_example(LOOK_ALIKE, text, text) for text in worded_look_alikes()]
        for kind, task in _harmless_tasks():
            task.prepare(offline=offline, observer=observer)
            made += [_harmless_example(kind, one.id, one.text, one.reference) for one in task.train()]
        return made


def _harmless_example(kind: str, content: str, text: str, reference: str | None = None) -> TaskExample:
    return task_example(
        "attacks/harmless", content, text, reference, messages=(Message("user", text),), texts=(content,),
        metadata={"kind": kind},
    )  # fmt: skip


class LookAlikes:
    """Harmless questions that look harmful: the measured ones are held out, others train."""

    def train(self) -> list[Prompt]:
        return [_look_alike(text) for text in TRAINING_LOOK_ALIKES]

    def evaluation(self) -> list[Prompt]:
        return [_look_alike(text) for text in LOOK_ALIKES]


def _look_alike(text: str) -> Prompt:
    return _harmless_example(LOOK_ALIKE, text, text).prompt
