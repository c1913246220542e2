"""What many tests share: tiny random language models on disk, and a quiet, offline, single-threaded process."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# Before anything imports torch or transformers; subprocesses inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped, by reason: pytest's own list has a line for each place in a file."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section(f"{len(skipped)} skipped", sep="-")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5}  {reason}")


@pytest.fixture(autouse=True)
def _only_own_rewards() -> Iterator[None]:
    """Forget the functions that a test gave to a run: the process keeps them so that the run can be resumed."""
    yield
    if given := sys.modules.get("burnish.rewards.given"):
        for name in given._GIVEN:
            given.REWARDS._entries.pop(name, None)
        given._GIVEN.clear()


BEGIN, END = "<|begin|>", "<|end|>"
"""Token 0 and token 1: the two that are easily lost by code that takes 0 for false."""

CORPUS = [
    "The minister said on Monday that the new law would come into force in the spring.",
    "Shares fell after the company said that it would cut one thousand jobs.",
    "The home team won the match in the last minute, and the crowd sang on the way home.",
    "我爱你。新华社北京电",
]
"""What the tokenizer's merges are learnt from, and prompts of tests."""


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=[BEGIN, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)


def _config(kind: str, vocabulary: int):
    from transformers import (
        GPT2Config,
        GPTNeoXConfig,
        Lfm2Config,
        LlamaConfig,
        MambaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3MoeConfig,
    )

    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    if kind == "gpt2":
        return GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ids)
    if kind == "mamba":
        return MambaConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, state_size=4, **ids)
    common = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 256,
        # Wide enough for a next-token distribution that is far from uniform.
        "initializer_range": 0.3, **ids,
    }  # fmt: skip
    if kind == "neox":
        return GPTNeoXConfig(**common)
    common["num_key_value_heads"] = 2
    if kind == "mistral":
        return MistralConfig(**common, sliding_window=16)
    if kind == "lfm2":
        return Lfm2Config(**common, layer_types=["conv", "full_attention"])
    if kind == "qwen3_moe":
        return Qwen3MoeConfig(**common, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
    return Qwen2Config(**common, tie_word_embeddings=True) if kind == "qwen2" else LlamaConfig(**common)


def _load_once(folders: Mapping[str, Path]) -> None:
    """Load each model of these folders once, and copy it from then on, which takes a fraction of the time."""
    from burnish.policies import loading

    load, kept = loading.load_merged_model, {}

    def copied(source: str | Path, dtype: object, *, offline: bool) -> object:
        key = Path(source), dtype
        if key[0] not in folders.values():
            return load(source, dtype, offline=offline)
        if key not in kept:
            kept[key] = load(source, dtype, offline=offline)
        return copy.deepcopy(kept[key])

    loading.load_merged_model = copied


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny random models by kind ("llama", "gpt2", "qwen2", "neox", "qwen3_moe"): two layers, width 32,
    some 300 byte-level tokens, float32 safetensors, no chat template. All have 4 heads; Llama and the Qwens have 2
    key-value heads, and Qwen3-MoE 4 experts, 2 of them for each token. "mistral" sees 16 tokens far; "mamba" and "lfm2"
    keep no plain cache of keys and values."""
    made: dict[str, Path] = {}
    _load_once(made)

    def folder(kind: str = "llama") -> Path:
        if kind not in made:
            import torch
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging

            logging.set_verbosity_error()
            logging.disable_progress_bar()
            tokenizer = _tokenizer()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                model = AutoModelForCausalLM.from_config(_config(kind, len(tokenizer)))
                if kind == "gpt2":
                    # Its own initialisation is nearly uniform, and its biases are zero.
                    for parameter in model.parameters():
                        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
            place = tmp_path_factory.mktemp(kind)
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
            made[kind] = place
        return made[kind]

    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_chat(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny Llama with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    shutil.copytree(tiny("llama"), folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder
