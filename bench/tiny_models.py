"""Tiny random models of every causal type of the installed transformers, with a byte tokenizer.

The default configuration of a type is shrunk by one table of small values, which holds for every attribute of that name,
nested configurations included; ``EXTRAS`` has what a type needs beyond it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from burnish.policies.pretrained import quiet_transformers

VOCABULARY = 272
LAYERS = 4
NOISE = 0.1
SPREAD = 2.5
"""Standard deviation of a row of logits, in nats."""

_SMALL: tuple[tuple[int, str], ...] = (
    (32, "hidden_size n_embd d_model dim emb_dim embedding_dim word_embed_proj_dim lru_width backbone_hidden_size "
         "input_embedding_size output_embedding_size embedding_size hidden_size_global input_size attention_hidden_size "
         "pronunciation_embed_dim shape_embed_dim out_hidden_size kv_hidden_size adapter_out_dim projector_input_dim "
         "projector_output_dim vision_output_dim output_channels"),
    (48, "intermediate_size ffn_dim d_inner dff d_ff dim_ff encoder_ffn_dim decoder_ffn_dim ffn_hidden_size mlp_dim "
         "feed_forward_size intermediate_size_mlp dense_intermediate_size shared_intermediate_size prompt_mid_dim"),
    (24, "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size "
         "shared_experts_intermediate_size moe_shared_expert_intermediate_size"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
             "num_encoder_layers num_blocks max_window_layers"),
    (2, "depth conf_num_hidden_layers num_global_layers n_input_layers n_recurrent_layers n_output_layers "
        "num_layers_per_stack"),
    (4, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads conf_num_attention_heads"),
    (2, "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_query_groups"),
    (8, "head_dim d_head d_kv dim_head attention_head_size attention_head_dim kv_channels global_head_dim "
        "swa_head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim rotary_dim linear_key_head_dim "
        "linear_value_head_dim linear_head_dim index_head_dim mamba_d_head mamba_head_dim mamba_headdim"),
    (16, "qk_head_dim q_lora_rank kv_lora_rank o_lora_rank gate_lora_rank laurel_rank hidden_size_per_layer_input "
         "ple_embed_dim router_hidden_size adapter_rank hc_lowrank loop_gate_rank"),
    (16, "sliding_window sliding_window_size attention_window_size local_attention window_size attention_chunk_size "
         "local_attention_window_len"),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k"),
    (1, "n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts "
        "first_k_dense_replace num_dense_layers zero_expert_num"),
    (8, "state_size mamba_d_state ssm_state_size mamba_chunk_size chunk_size block_size local_attn_chunk_length "
        "lsh_attn_chunk_length mamba_dt_rank time_step_rank"),
    (2, "linear_num_key_heads mamba_n_groups n_groups mamba_ngroups index_n_heads n_mamba_heads"),
    (4, "linear_num_value_heads linear_num_heads"),
    (8, "mamba_n_heads mamba_num_heads"),
    (0, "num_nextn_predict_layers"),
    (512, "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length "
          "max_target_positions max_source_positions index_topk keep_window_size"),
    (VOCABULARY, "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size audio_vocab_size"),
    (64, "codebook_size ngram_vocab_size_base encoder_hash_byte_group_vocab pronunciation_vocab_size "
         "shape_vocab_size"),
    (32, "image_size crop_size"),
    (8, "patch_size num_mel_bins"),
    (0, "bos_token_id decoder_start_token_id"),
    (1, "eos_token_id eod_token_id forced_eos_token_id eos_index"),
    (2, "pad_token_id pad_index"),
)  # fmt: skip
SMALL = {name: value for value, names in _SMALL for name in names.split()}
TOKEN_NAMES = ("_token_id", "_token_index", "_index")
"""Ends of the names of further special tokens, which get ids that no text has."""
_GEMMA3N = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
_QWEN4 = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "indexer_compress_ratio": 4,
}  # fmt: skip
_ALTERNATING = {"layer_types": ["full_attention", "sliding_attention"] * 2}
EXTRAS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "bert-generation": {"is_decoder": True},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    # Scales are stored relative to initializer_range: with the default, the noise would be several times their size.
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1, "initializer_range": NOISE},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
        "sliding_window_size": 16,
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n": {"text_config": _GEMMA3N},
    "gemma3n_text": _GEMMA3N,
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": _ALTERNATING,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mellum": _ALTERNATING,
    "mamba2": {"num_heads": 8},
    "minicpm3": {"dim_model_base": 32},
    "minimax_m3_vl_text": {
        "index_topk_blocks": 2,
        "index_block_size": 8,
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    },
    "ministral": {"head_dim": 8},
    "musicgen": {"dropout": 0.0},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_head_dim": 16, "attention_hidden_size": 64},
    "zamba2": {"n_mamba_heads": 8, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def shrunk(config: Any) -> dict[str, Any]:
    """Return the arguments that make a small configuration of a default one."""
    from transformers import PretrainedConfig

    options: dict[str, Any] = {}
    declared = {field.name for field in dataclasses.fields(config)}
    depths = {value for name, value in vars(config).items() if SMALL.get(name) == LAYERS and isinstance(value, int)}
    special = VOCABULARY
    for name, value in vars(config).items():
        if name not in declared:
            pass  # derived from others
        elif isinstance(value, PretrainedConfig):
            options[name] = {"model_type": value.model_type, **shrunk(value)} if value.model_type else shrunk(value)
        elif name == "num_key_value_heads" and "kv_lora_rank" in vars(config):
            options[name] = SMALL["num_attention_heads"]  # multi-head latent attention has no groups
        elif name in SMALL and value is not None and not isinstance(value, (bool, str)):
            options[name] = SMALL[name]
        elif isinstance(value, int) and value > VOCABULARY and name.endswith(TOKEN_NAMES):
            special -= 1
            options[name] = special
        elif isinstance(value, (list, tuple)) and len(value) > LAYERS and len(value) in depths:
            kinds = [one for index, one in enumerate(value) if one not in value[:index]]
            options[name] = [kinds[index % len(kinds)] for index in range(LAYERS)]
    return options


def merged(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with others in place of theirs; nested ones are merged."""
    both = {
        name: merged(options[name], value) if isinstance(value, dict) and isinstance(options.get(name), dict) else value
        for name, value in others.items()
    }
    return {**options, **both}


def tiny_config(kind: str, **options: Any) -> Any:
    """Return a small configuration of a model type."""
    from transformers import CONFIG_MAPPING

    config_class, extras = CONFIG_MAPPING[kind], EXTRAS.get(kind, {})
    try:
        default = config_class()
    except ValueError:  # refuses its own defaults
        default = config_class(**extras)
    return config_class(**merged(merged(shrunk(default), extras), options))


def byte_tokenizer(size: int = VOCABULARY) -> Any:
    """Return a tokenizer with a token per byte after begin, end and padding; others, which no text has, fill it up."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<|begin|>", "<|end|>", "<|pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"e{index:x}" for index in range(len(tokens), size)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, padding = tokens[:3]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=padding)


def tiny_model(kind: str, **options: Any) -> Any:
    """Return a random model of a type with noise on every weight, whose logits spread as a trained model's do.

    All weights are numbers of bfloat16, so that rounding them is not part of any error.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    with quiet_transformers(), torch.no_grad():
        model = AutoModelForCausalLM.from_config(tiny_config(kind, **options), dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=NOISE)
        head = model.get_output_embeddings()
        if head is not None:
            logits = model(input_ids=torch.arange(3, 43)[None], use_cache=False).logits
            head.weight.mul_(max(1.0, SPREAD / float((logits - logits.mean(-1, keepdim=True)).std())))
        for tensor in model.parameters():
            tensor.copy_(tensor.bfloat16().float())
    return model


def write_tiny_model(kind: str, folder: Path, **options: Any) -> Path:
    """Write a tiny model and its tokenizer to ``folder``/``kind``, with the config that such models are published with."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with quiet_transformers():
        model = tiny_model(kind, **options)
        model.save_pretrained(folder / kind)
        if model.config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            tiny_config(kind, **options).save_pretrained(folder / kind)
        byte_tokenizer().save_pretrained(folder / kind)
    return folder / kind
