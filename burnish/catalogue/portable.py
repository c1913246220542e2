"""Model folders that other programs open: transformers 4 and 5, peft, vLLM, llama.cpp's converter.

transformers 5 writes names that version 4 ignores, sometimes without a word: the base frequency of rotary positions, for
one. ``make_portable`` adds the older spelling of each, which version 5 reads too, and removes what is true on this
machine only.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from burnish.catalogue import store
from burnish.catalogue.entries import names
from burnish.system.files import follow_umask

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
"""Keys of a generation config that contradict greedy decoding."""
_BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "constraints")
_LAYER_FREQUENCIES = {
    "modernbert": ("global_rope_theta", "local_rope_theta"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
}
"""model_type -> version 4's names for the frequencies of its full and its sliding attention."""
_LAYER_TYPES = {
    "granitemoehybrid": ("layer_types", {"linear_attention": "mamba", "full_attention": "attention"}),
    "zamba": ("layers_block_type", {"linear_attention": "mamba"}),
    "zamba2": ("layers_block_type", {"linear_attention": "mamba"}),
}
"""model_type -> the key of its layers' types, and version 4's names of them."""


def make_portable(folder: Path, *, dtype: str | None = None, end_ids: Collection[int] = ()) -> None:
    """Rewrite the JSON files of a saved model or adapter, so that other programs read the same model from it.

    Args:
        dtype: the type of the saved weights, such as "bfloat16"; None leaves what the config says.
        end_ids: the tokens at which sampling stops; none leaves what the generation config says.
    """
    _rewrite_config(folder, dtype)
    _rewrite(folder / "generation_config.json", lambda config: _consistent_generation(config, end_ids))
    _rewrite(folder / "tokenizer_config.json", lambda config: _generic_tokenizer(config, folder))
    if (folder / "adapter_config.json").is_file():
        _rewrite(folder / "adapter_config.json", _named_base)
        # peft's card consists of blanks to fill in, and of the base's path.
        (folder / "README.md").unlink(missing_ok=True)
    follow_umask(folder)


def public_name(source: str) -> str:
    """Return the catalogue name or hub id of a model whose path leads into a cache; any other source as it is."""
    path = Path(source)
    if path.parent == store.home() / "models" and (facts := store.published(path)):
        return str(facts["name"]) if facts.get("name") in names("model") else source
    if path.parent.name == "snapshots" and path.parts[-3].startswith("models--"):
        newest = path.parents[1] / "refs" / "main"
        if newest.is_file() and newest.read_text(encoding="utf-8").strip() == path.name:
            return path.parts[-3].removeprefix("models--").replace("--", "/", 1)
    return source


def _rewrite(path: Path, change: Any) -> None:
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(change(before), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        path.write_text(text, encoding="utf-8")


def _rewrite_config(folder: Path, dtype: str | None) -> None:
    """Rewrite config.json. Keys of version 4 are left out where version 5 would read other settings because of them."""
    _rewrite(folder / "config.json", lambda config: _loadable(_plain_config(config, dtype)))
    if (before := _read_config(folder)) is not None:
        plain = (folder / "config.json").read_text(encoding="utf-8")
        _rewrite(folder / "config.json", _both_spellings)
        after = _read_config(folder) or {}
        if any(after.get(key) != value for key, value in before.items()):
            (folder / "config.json").write_text(plain, encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any] | None:
    """Return the settings that the installed transformers reads from a folder; None if it cannot."""
    from transformers import AutoConfig

    try:
        with warnings.catch_warnings(action="ignore"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return dict(config.to_dict())
    except Exception:  # classes check their settings in any way
        return None


def _plain_config(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """Return a config without private keys, with plain numbers and the type of the saved weights."""
    config = {key: _plain_float(value) for key, value in config.items() if key not in ("auto_map", "_name_or_path")}
    for key, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            config[key] = _plain_config(value, dtype)
    if dtype is not None and "dtype" in config:
        config["dtype"] = dtype
    return config


def _loadable(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a text model within that of its family, where transformers opens only the latter."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type", "")
    family = model_type_to_module_name(kind)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return config
    inner: Any = CONFIG_MAPPING[family].sub_configs.get("text_config")
    if getattr(inner, "model_type", None) != kind:
        return config
    shared = ("architectures", "dtype", "tie_word_embeddings")
    family_config = {key: value for key, value in config.items() if key in shared}
    return family_config | {"model_type": family, "text_config": config}


def _both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the keys of version 4 beside those of version 5, nested configs included."""
    config = {
        key: _both_spellings(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in config.items()
    }
    kind = config.get("model_type", "")
    if kind in _LAYER_TYPES:
        key, older = _LAYER_TYPES[kind]
        config[key] = [older.get(layer, layer) for layer in config.get(key) or ()]
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return config
    if all(isinstance(value, dict) for value in rope.values()):  # one table per type of layer
        full, sliding = _LAYER_FREQUENCIES.get(kind, ("rope_theta", "rope_local_base_freq"))
        for name, layers in ((full, "full_attention"), (sliding, "sliding_attention")):
            if "rope_theta" in rope.get(layers, {}):
                config[name] = rope[layers]["rope_theta"]
        rope = rope.get("full_attention", {})
    elif "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if kind.startswith("gpt_neox"):
            config |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    inner, scaled = ("rope_theta", "partial_rotary_factor"), rope.get("rope_type", "default") != "default"
    # Some classes of version 4 scale unless told not to.
    config["rope_scaling"] = {key: value for key, value in rope.items() if key not in inner} if scaled else None
    return config


def _plain_float(value: Any) -> Any:
    """Return infinity as a number where version 5 wrote an object that version 4 cannot read."""
    if isinstance(value, dict):
        return (
            float(value["__float__"]) if set(value) == {"__float__"} else {k: _plain_float(v) for k, v in value.items()}
        )
    return [_plain_float(item) for item in value] if isinstance(value, list) else value


def _consistent_generation(config: dict[str, Any], end_ids: Collection[int]) -> dict[str, Any]:
    """Return a generation config in which no key contradicts another, and which stops where sampling stopped."""
    dropped = {"_from_model_config"}
    if not config.get("do_sample"):
        dropped |= set(_SAMPLING)
    if (config.get("num_beams") or 1) == 1:
        dropped |= set(_BEAMS)
    if config.get("max_new_tokens") is not None:
        dropped.add("max_length")
    if str(config.get("cache_implementation", "")).startswith("hybrid"):  # not in version 5
        dropped.add("cache_implementation")
    config = {key: value for key, value in config.items() if key not in dropped}
    if end_ids:
        ends = sorted(end_ids)
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return config


def _generic_tokenizer(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a tokenizer config that makes both versions read tokenizer.json as it is.

    A class of its own would rebuild parts of it: each version its own parts.
    """
    private = ("is_local", "local_files_only", "auto_map", "name_or_path", "_commit_hash")
    config = {key: value for key, value in config.items() if key not in private}
    if not (folder / "tokenizer.json").is_file():
        return config
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Version 4 would add token types, which most models refuse.
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(extra := config.get("extra_special_tokens"), list):  # version 4 expects a table there
        del config["extra_special_tokens"]
        config["additional_special_tokens"] = extra
    return config


def _named_base(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"base_model_name_or_path": public_name(str(config.get("base_model_name_or_path") or ""))}
