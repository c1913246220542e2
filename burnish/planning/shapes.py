"""Shapes of language models: from a table of published ones, or from a folder's config.json.

All have Llama's layers: queries, keys and values, an output projection, and a gated feed-forward part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.system.paths import expanded

LLAMA_LIKE = (
    "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "llama", "ministral", "mistral", "olmo2", "olmo3",
    "phi3", "qwen2", "qwen3", "seed_oss", "smollm3",
)  # fmt: skip
"""Values of model_type in config.json whose layers have the matrices of ``Shape``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder with Llama's layers, in the terms of Hugging Face's config.json.

    Attributes:
        key_value_heads: heads of keys and values, each shared by several query heads.
        head_size: numbers of a head.
        intermediate: width of the feed-forward part.
        tied: whether embedding and head are one matrix.
        biased: whether queries, keys and values have biases.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    biased: bool = False

    @property
    def query_width(self) -> int:
        """Numbers of all query heads of a token."""
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        """Numbers of all heads of keys of a token; values have as many."""
        return self.key_value_heads * self.head_size

    @property
    def layer_matrices(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of the matrices of a layer."""
        queries, keys = (self.query_width, self.hidden), (self.key_width, self.hidden)
        up, down = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        return queries, keys, keys, queries[::-1], up, up, down

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of one layer."""
        return sum(outputs * inputs for outputs, inputs in self.layer_matrices)

    @property
    def head_weights(self) -> int:
        """Weights of the head, which turns states into logits."""
        return self.vocabulary * self.hidden

    @property
    def products(self) -> int:
        """Weights that each token is multiplied with: all matrices, without a separate embedding, which is looked up."""
        return self.layers * self.layer_weights + self.head_weights

    @property
    def parameters(self) -> int:
        """Number of all weights: matrices, embedding, two norms a layer and the last one, biases."""
        biases = self.query_width + 2 * self.key_width if self.biased else 0
        norms = self.layers * (2 * self.hidden + biases) + self.hidden
        return self.products + norms + (0 if self.tied else self.head_weights)

    def adapter_weights(self, rank: int) -> int:
        """Return the weights of an adapter of this rank on all matrices of all layers (arXiv 2106.09685)."""
        return self.layers * rank * sum(outputs + inputs for outputs, inputs in self.layer_matrices)


PUBLISHED: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49_152, True),
        Shape("gemma3-270m", 18, 640, 4, 1, 256, 2048, 262_144, True),
        Shape("smollm2-360m", 32, 960, 15, 5, 64, 2560, 49_152, True),
        Shape("qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151_936, True, True),
        Shape("qwen3-0.6b", 28, 1024, 16, 8, 128, 3072, 151_936, True),
        Shape("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128_256, True),
        Shape("qwen2.5-1.5b", 28, 1536, 12, 2, 128, 8960, 151_936, True, True),
        Shape("smollm2-1.7b", 24, 2048, 32, 32, 64, 8192, 49_152, True),
        Shape("qwen2.5-3b", 36, 2048, 16, 2, 128, 11_008, 151_936, True, True),
        Shape("qwen3-4b", 36, 2560, 32, 8, 128, 9728, 151_936, True),
        Shape("qwen2.5-7b", 28, 3584, 28, 4, 128, 18_944, 152_064, False, True),
        Shape("llama-2-7b", 32, 4096, 32, 32, 128, 11_008, 32_000, False),
        Shape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14_336, 128_256, False),
        Shape("llama-2-13b", 40, 5120, 40, 40, 128, 13_824, 32_000, False),
        Shape("qwen2.5-14b", 48, 5120, 40, 8, 128, 13_824, 152_064, False, True),
        Shape("qwen2.5-32b", 64, 5120, 40, 8, 128, 27_648, 152_064, False, True),
        Shape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28_672, 128_256, False),
        Shape("qwen2.5-72b", 80, 8192, 64, 8, 128, 29_568, 152_064, False, True),
    )
}
"""Published models by name, from the smallest to the largest, as in the config.json of each."""
SIZES: dict[str, str] = {}
"""Size as people write it, such as "7b" -> the first model of ``PUBLISHED`` whose name ends with it."""
for _name in PUBLISHED:
    SIZES.setdefault(_name.rpartition("-")[2], _name)
LARGEST = 1 << 24
"""Of the sizes in a config.json; those of published models are below a million."""
VARIANTS = re.compile(r"-(instruct|chat|it|base|hf|math|coder)(?=-|$)")
"""Parts of a hub id that do not change a model's shape."""


def model_shape(model: str) -> tuple[Shape, str]:
    """Return a model's shape, and where it is from.

    ``model`` is a folder with a config.json or a run, a name of ``PUBLISHED``, also as a hub id, or a size such as "7b".
    Raises InputError if it is none of these, or its layers are not Llama's.
    """
    path = expanded(model)
    if model and path.is_dir():
        return _read(path, model)
    key = VARIANTS.sub("", model.strip().rpartition("/")[2].lower())
    key = key.replace("meta-llama", "llama").replace("gemma-3-", "gemma3-")
    if key in PUBLISHED:
        return PUBLISHED[key], "published"
    if key in SIZES and "/" not in model:
        return PUBLISHED[SIZES[key]], f"assumed: {model} has the shape of {SIZES[key]}"
    raise InputError(
        f"--model {model}: neither a folder nor a model whose shape is known{nearest(key, [*PUBLISHED, *SIZES])}; name a "
        f"folder with a config.json, a size ({', '.join(SIZES)}) or one of: {', '.join(PUBLISHED)}"
    )


def _read(folder: Path, name: str) -> tuple[Shape, str]:
    """Return the shape that the config.json of a model's or a run's folder describes."""
    path = next((one for one in (folder / "config.json", folder / "model" / "config.json") if one.is_file()), None)
    if path is None:
        raise InputError(f"--model {name}: the folder has no config.json; name the folder of a model or of a run")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): copy or download it again") from error
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        config = {"tie_word_embeddings": config.get("tie_word_embeddings", True), **config["text_config"]}
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in LLAMA_LIKE:
        raise InputError(
            f"{path}: model_type = {kind!r}: burnish plan estimates dense models with Llama's layers "
            f"({', '.join(LLAMA_LIKE)}); give a size such as --model 7b for a rough estimate"
        )
    return _shape(config, path), str(path)


def _shape(config: Mapping[str, Any], path: Path) -> Shape:
    def size(key: str, default: int | None = None) -> int:
        value = default if config.get(key) is None else config[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
            shown = repr(config.get(key))[:40]
            raise InputError(f"{path}: {key} = {shown}: must be a whole number above 0 and at most {LARGEST:,}")
        return value

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    kind = str(config["model_type"])
    return Shape(
        kind, size("num_hidden_layers"), hidden, heads, size("num_key_value_heads", heads),
        size("head_dim", max(1, hidden // heads)), size("intermediate_size"), size("vocab_size"),
        bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
        bool(config.get("attention_bias", kind == "qwen2")),
    )  # fmt: skip
