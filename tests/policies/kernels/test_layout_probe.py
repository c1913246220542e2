"""Layouts and limits of models whose attention selects keys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench.tiny_models import tiny_model
from burnish.policies.kernels.layout_probe import choose_layout, max_text_tokens, name_limit
from burnish.policies.kernels.packing import packed_states


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096, "n_positions": None}, 4096),
        ({"max_position_embeddings": 4096, "index_topk": 2048}, 2048),
        ({"index_topk": 512, "compress_rates": {"compressed_sparse_attention": 4}}, 2048),
        ({"max_position_embeddings": 512, "keep_window_size": 2048}, 512),
    ],
)
def test_a_text_is_no_longer_than_sparse_attention_sees_whole(settings, limit):
    assert max_text_tokens(SimpleNamespace(**settings)) == limit


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, ""),
        ({"max_position_embeddings": 2048, "index_topk": 2048}, ""),
        ({"max_position_embeddings": 4096, "index_topk": 2048}, " (index_topk of its sparse attention)"),
        ({"max_position_embeddings": 4096, "keep_window_size": 2048}, " (keep_window_size of its sparse attention)"),
    ],
)
def test_the_key_that_limits_a_text_is_named(settings, name):
    assert name_limit(SimpleNamespace(**settings)) == name


@pytest.mark.slow
def test_attention_to_blocks_of_keys_is_not_packed():
    blocks = {"index_topk_blocks": 16, "index_block_size": 128}  # no probe is long enough to show it
    kinds = ["full_attention", "minimax_m3_sparse"] * 2
    assert choose_layout(tiny_model("minimax_m3_vl_text", **blocks, layer_types=kinds)).layout is not packed_states
    whole = tiny_model("minimax_m3_vl_text", **blocks, layer_types=["full_attention"] * 4)
    assert choose_layout(whole).layout is packed_states
