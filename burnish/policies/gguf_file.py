"""GGUF files of Llama-like models, which llama.cpp opens.

What llama.cpp would compute differently is refused: an architecture, a kind of rotary positions or a tokenizer that is
not in the tables below. Formats: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
import torch

from burnish.errors import InputError

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""Name -> type of the matrices, and the file's type. Vectors stay float32."""
_BLOCK = 32  # weights that share a scale in q8_0
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    ("ByteLevel with its pattern",): "gpt-2",
    ("Digits", "ByteLevel with its pattern"): "smollm",
    (f"Split {_WORDS % '{1,3}'}", "ByteLevel"): "llama-bpe",
    (f"Split {_WORDS % ''}", "ByteLevel"): "qwen2",
}
"""Steps of a byte-level pre-tokenizer -> llama.cpp's name for them."""
_ELSE = "export without --gguf, and try llama.cpp's convert_hf_to_gguf.py on the folder"


def write_gguf(
    model: Any,
    tokenizer: Any,
    path: Path,
    kind: str,
    *,
    name: str,
    end_ids: Collection[int] = (),
) -> None:
    """Write a model with its tokenizer and chat template into one file.

    Args:
        model, tokenizer: of transformers.
        kind: one of ``TYPES``.
        end_ids: the tokens at which sampling stops; the file has room for two.

    Raises:
        InputError: the type, the architecture or the tokenizer has no exact counterpart here; the message names it.
    """
    if kind not in TYPES:
        raise InputError(f"--dtype {kind}: burnish writes GGUF files of type {', '.join(TYPES)}; quantise f16 further "
                         "with llama.cpp's llama-quantize")  # fmt: skip
    config = model.config
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"burnish writes GGUF files of {', '.join(ARCHITECTURES)} models, and this one is '{config.model_type}': {_ELSE}"
        )
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    writer.add_file_type(TYPES[kind][1])
    factors = _write_shape(writer, model)
    _write_tokenizer(writer, tokenizer, model, end_ids)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for parameter, tensor in model.state_dict().items():
        if tied and parameter == "lm_head.weight":
            continue
        target = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise InputError(f"weight '{parameter}' has no name in a GGUF file of type '{config.model_type}': {_ELSE}")
        if architecture == gguf.MODEL_ARCH.LLAMA:
            tensor = _interleaved(parameter, tensor, config)
        _write_tensor(writer, target, tensor, TYPES[kind][0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: Any, model: Any) -> Any:
    """Write the architecture's numbers. Return the factors of the rotary frequencies [head size / 2], or None."""
    config = model.config
    rope = config.rope_parameters or {}
    if config.hidden_act != "silu":
        raise InputError(f"its activation '{config.hidden_act}' is not llama.cpp's for this architecture: {_ELSE}")
    frequencies = model.base_model.rotary_emb.inv_freq.float().cpu()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3") or 2 * len(frequencies) != size:
        raise InputError(f"rotary positions of type '{kind}' are not written: {_ELSE}")
    window = getattr(config, "sliding_window", None)  # llama.cpp has none here, so no text may be longer
    writer.add_context_length(min(config.max_position_embeddings, window or config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(model.get_input_embeddings().weight.shape[0])
    if kind == "default":
        return None
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / frequencies.double()).float().numpy()


def _interleaved(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Reorder query and key rows: this architecture rotates neighbours, transformers the halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)
    if not heads:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _write_tensor(writer: Any, name: str, tensor: torch.Tensor, kind: Any) -> None:
    values = tensor.detach().float().cpu().contiguous().numpy()
    if values.ndim < 2:
        kind = gguf.GGMLQuantizationType.F32
    elif kind == gguf.GGMLQuantizationType.Q8_0 and values.shape[-1] % _BLOCK:
        kind = gguf.GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _write_tokenizer(writer: Any, tokenizer: Any, model: Any, end_ids: Collection[int]) -> None:
    described = json.loads(tokenizer.backend_tokenizer.to_str()) if hasattr(tokenizer, "backend_tokenizer") else {}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(described))
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {entry["id"]: entry for entry in described["added_tokens"]}
    tokens, kinds = [], []
    for index in range(model.get_input_embeddings().weight.shape[0]):
        tokens.append(vocabulary.get(index, f"[PAD{index}]"))
        if index not in vocabulary:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in added:
            kinds.append(gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = described["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(begin is not None and encoded[0] == begin)
    writer.add_add_eos_token(end is not None and encoded[-1] == end)
    others = sorted(set(end_ids) - {end})
    ids = {
        "bos": begin,
        "eos": end,
        "pad": tokenizer.pad_token_id,
        "unk": tokenizer.unk_token_id,
        "eot": next(iter(others), None),
    }
    for name, index in ids.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(described: dict[str, Any]) -> str:
    """Return llama.cpp's name of a byte-level BPE tokenizer. Raises InputError if it has none that splits text alike."""
    model, cut = described.get("model") or {}, described.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut])
    name = _PRE_TOKENIZERS.get(tuple(_step(step) for step in steps))
    normalizer = (described.get("normalizer") or {}).get("type")
    plain = model.get("type") == "BPE" and not model.get("byte_fallback") and not model.get("continuing_subword_prefix")
    merged_first = bool(model.get("ignore_merges")) == (name == "llama-bpe")
    if name is None or not plain or not merged_first or normalizer not in (None, "NFC"):
        raise InputError(f"its tokenizer splits text in a way that burnish has no GGUF name for: {_ELSE}")
    return name


def _step(step: dict[str, Any]) -> str:
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel with its pattern" if step.get("use_regex", True) else "ByteLevel"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return f"Split {pattern}"
    return f"unknown {step.get('type')}"
