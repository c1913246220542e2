"""Python source of rewards: a module with a function ``f``."""

from __future__ import annotations

HEAD = """import asyncio, decimal, fractions, functools, itertools, logging, math, os, random, signal, sys, warnings
import numpy as np
import torch

CALLS = itertools.count()


class Odd(Exception):
    def __str__(self):
        raise ValueError("no text")


class Base(BaseException):
    pass


class NoNumber:
    def __float__(self):
        raise RuntimeError("no number")


class Text(str):
    pass


"""
FORMS = (
    "def f({}):",
    "async def f({}):",
    "@functools.cache\ndef f({}):",
    "@burnish.reward\ndef f({}):",
    "@burnish.reward()\ndef f({}):",
)
PLAIN = "len(str(text)) / 8"
"""What the undamaged reward returns."""


def source(
    signature: str = "text", form: str = FORMS[0], deeds: tuple[str, ...] = (), value: str = PLAIN, when: str = ""
) -> str:
    """Return a module with the reward ``f``; the deeds happen at every call, or ``when`` a condition holds."""
    body = [f"if {when}:", *(f"    {deed}" for deed in deeds or ("pass",))] if when else list(deeds)
    for all_of, one in (("completions", "completion"), ("texts", "text")):
        if all_of in signature.split(", "):
            value = f"[{value} for {one} in {all_of}]"
    lines = "".join(f"    {line}\n" for line in [*body, f"return {value}"])
    return f"import burnish\n{HEAD}{form.format(signature)}\n{lines}"
