"""Output shared by the verbs: JSON, text made safe for a terminal."""

from __future__ import annotations

import json
from typing import Any


def print_json(value: Any) -> None:
    """Print indented JSON that keeps non-ASCII characters."""
    print(json.dumps(value, ensure_ascii=False, indent=1))


def escape(text: str) -> str:
    """Return the text with unprintable characters escaped; an error message may quote model output."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
