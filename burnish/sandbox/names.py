"""Layer names, as in recipes, commands and verdicts."""

from __future__ import annotations

NAMESPACES, LANDLOCK, WASM, NONE = "namespaces", "landlock", "wasm", "none"
STRONGEST = "strongest"
STRONG = (NAMESPACES, LANDLOCK, WASM)
CHOICES = (STRONGEST, *STRONG, NONE)
TITLES = {
    NAMESPACES: "namespaces + landlock + seccomp",
    LANDLOCK: "landlock + seccomp",
    WASM: "wasm",
    NONE: "none: limits alone",
}
