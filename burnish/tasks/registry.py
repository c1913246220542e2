"""Tasks by name. A task is a class whose keyword arguments, all with defaults, are the options of its ``[task]`` table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from burnish.errors import InputError
from burnish.protocols import Task
from burnish.registry import Registry, nearest

TaskFactory = Callable[..., Task]


def _factory(name: str, found: object) -> TaskFactory:
    if not callable(found):
        raise InputError(f"task '{name}' is neither a class nor a function but a {type(found).__name__}")
    return cast("TaskFactory", found)


TASKS: Registry[TaskFactory] = Registry(
    "task",
    builtin={
        "code": "burnish.tasks.code:Code",
        "data": "burnish.tasks.data:Data",
        "dialogue": "burnish.tasks.dialogue:Dialogue",
        "headlines": "burnish.tasks.headlines:Headlines",
        "news": "burnish.tasks.news:News",
        "news_zh": "burnish.tasks.news_zh:ChineseNews",
        "reasoning": "burnish.tasks.reasoning:Reasoning",
        "story": "burnish.tasks.story:Story",
        "toy": "burnish.tasks.toy:Toy",
        "translation": "burnish.tasks.translation:Translation",
    },
    wrap=_factory,
)


def check_task_options(factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises InputError where a recipe's keys are not the task's options, or of another type."""
    parameters = inspect.signature(factory).parameters
    for key, value in options.items():
        if key not in parameters:
            known = ["use", *parameters]
            raise InputError(f"unknown key '{key}'{nearest(key, known)}; known: {', '.join(known)}")
        default = parameters[key].default
        if default in (None, inspect.Parameter.empty):
            continue
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
            raise InputError(f"{key} = {value!r} must be of the kind of its default {default!r}")
