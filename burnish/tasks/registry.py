"""Tasks by name. A task is a class whose keyword arguments, all with defaults, are the options of its ``[task]`` table.

A task raises InputError if an option is unknown or out of range, or if its data is missing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from burnish.errors import InputError
from burnish.protocols import Task
from burnish.registry import Registry, factory, has_kind, nearest

TaskFactory = Callable[..., Task]

TASKS: Registry[TaskFactory] = Registry(
    "task",
    builtin={
        "code": "burnish.tasks.code:Code",
        "data": "burnish.tasks.data:DataTask",
        "dialogue": "burnish.tasks.dialogue:Dialogue",
        "headlines": "burnish.tasks.news:Headlines",
        "news": "burnish.tasks.news:News",
        "news_zh": "burnish.tasks.news_zh:ChineseNews",
        "reasoning": "burnish.tasks.reasoning:Reasoning",
        "story": "burnish.tasks.story:Story",
        "toy": "burnish.tasks.toy:Toy",
        "translation": "burnish.tasks.translation:Translation",
    },
    wrap=partial(factory, "task"),
)


def check_task_options(
    factory: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    own: Sequence[str] = ("use",),
    refused: Sequence[str] = (),
) -> None:
    """Raise InputError if a recipe's keys are not options of the task, or their values have another type.

    The message about an unknown key names the section's ``own`` keys too, and leaves out options that it refuses.
    """
    parameters = inspect.signature(factory).parameters
    for key, value in options.items():
        if key not in parameters:
            known = [*own, *(name for name in parameters if name not in refused)]
            raise InputError(f"unknown key '{key}'{nearest(key, known)}; known: {', '.join(known)}")
        default = parameters[key].default
        if default is not inspect.Parameter.empty and not has_kind(value, default):
            raise InputError(f"{key} = {value!r} must have the type of its default {default!r}")
