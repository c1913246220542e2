"""The examples and the recipes of the docs, each run in its own process on a tiny random model."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "steps=2",
    "sampling.prompts_per_step=2",
    "sampling.samples_per_prompt=3",
    "sampling.max_new_tokens=8",
    "evaluation.prompts=4",
    "evaluation.resamples=100",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random two-layer Llama and a byte tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    end = "<|end|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([end, *alphabet])}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token=end).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024,
            bos_token_id=None, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(folder: Path, *command: str) -> str:
    """Run Python in ``folder`` and return its standard output."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def samples(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def block(page: str, language: str, holding: str) -> str:
    """The code block of a page in that language that holds a given text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M) if holding in code]
    return code


def test_custom_reward_trains_the_news_recipe(tiny: Path, tmp_path: Path) -> None:
    printed = run(tmp_path, str(ROOT / "examples" / "custom_reward.py"), f"policy.model={tiny}", *SMALL)
    report = tmp_path / printed.splitlines()[-1]
    assert report.name == "report.html" and report.is_file()
    sampled = samples(report.parent / "samples.jsonl")
    assert len(sampled) == 2 * 2 * 3
    for sample in sampled:
        parts, words = sample["parts"], len(str(sample["completion"]).split())
        assert isinstance(parts, dict) and set(parts) == {"bleu", "brevity"}
        assert parts["brevity"] == pytest.approx(1 / (1 + words))
        assert sample["reward"] == pytest.approx(1.0 * parts["bleu"] + 0.2 * parts["brevity"])
    evaluation = json.loads((report.parent / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["reward/brevity"]["n"] == 4


def test_ask_a_model(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "chat")
    template = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"
    (tmp_path / "chat" / "chat_template.jinja").write_text(template, encoding="utf-8")
    printed = run(tmp_path, str(ROOT / "examples" / "ask_a_model.py"), "chat").splitlines()
    for answer, line in zip((" Paris ", " London "), printed[-2:], strict=True):
        # An untrained model gives each byte about one chance in 257.
        assert float(line.removeprefix(answer)) == pytest.approx(-math.log(257) * (len(answer) - 1), rel=0.2)


@pytest.mark.parametrize(
    ("name", "parts"), [("trl_rewards", {"format_reward", "accuracy_reward"}), ("verl_reward", {"compute_score"})]
)
def test_the_rewards_of_trl_and_verl_train_unchanged(tiny: Path, tmp_path: Path, name: str, parts: set[str]) -> None:
    shutil.copytree(tiny, tmp_path / "chat")
    template = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"
    (tmp_path / "chat" / "chat_template.jinja").write_text(template, encoding="utf-8")
    printed = run(tmp_path, str(ROOT / "examples" / f"{name}.py"), "policy.model=chat", *SMALL)
    sampled = samples((tmp_path / printed.splitlines()[-1]).parent / "samples.jsonl")
    assert len(sampled) == 2 * 2 * 3 and all(set(sample["parts"]) == parts for sample in sampled)
    for sample in sampled:
        a, b = map(int, re.findall(r"\d", str(sample["prompt"])))
        right = float(str(a + b) in str(sample["completion"]))
        assert sample["parts"].get("accuracy_reward", sample["parts"].get("compute_score")) == right


def test_grpo_minimal_learns_the_sentence(tmp_path: Path) -> None:
    printed = run(tmp_path, str(ROOT / "examples" / "grpo_minimal.py"))
    rewards = [float(value) for value in re.findall(r"mean reward (\d\.\d+)", printed)]
    assert len(rewards) == 11
    # The expected reward of the first 64 samples is 0.24; four standard errors are 4 * 0.053.
    assert 0.02 < rewards[0] < 0.46
    assert min(rewards[-3:]) > 0.9


@pytest.mark.parametrize(("page", "adapter"), [("README.md", True), ("docs/en/tasks.md", False)])
def test_the_recipe_of_the_docs_trains_on_your_own_data(tiny: Path, workspace, page: str, adapter: bool) -> None:
    workspace.write("mine.toml", block(page, "toml", "name = "))
    workspace.write("my_task.py", block("docs/en/tasks.md", "python", "class JsonLines"))
    rows = [(f"你好 number {number} is", f"the number {number} and no other") for number in range(40)]
    data = [{"prompt": asked, "question": asked, "reference": true, "answer": true} for asked, true in rows]
    workspace.write("data.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data))
    workspace.write("questions.csv", "question,answer\n" + "".join(f"{asked},{true}\n" for asked, true in rows))
    # The tiny model has no chat template.
    settings = [f"policy.model={tiny}", *SMALL, *(["task.chat=false"] if page == "README.md" else [])]
    overrides = [part for setting in settings for part in ("--set", setting)]
    trained = workspace.ask("train", "mine.toml", "--run-dir", "run", "--quiet", *overrides)
    assert trained.status == 0, trained.err
    assert "Held-out evaluation" in trained.out
    model = workspace / "run" / "model"
    assert (model / "adapter_model.safetensors").is_file() == adapter
    assert (model / "model.safetensors").is_file() != adapter
    trained_on = {str(sample["prompt"]) for sample in samples(workspace / "run" / "samples.jsonl")}
    measured = json.loads((workspace / "run" / "evaluation" / "after.json").read_text(encoding="utf-8"))["samples"]
    held_out = {sample["prompt"] for sample in measured}
    assert trained_on and held_out and not trained_on & held_out
    assert trained_on | held_out <= {asked for asked, _ in rows}


def test_dpo_chat_prints_each_seed(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "chat")
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (tmp_path / "chat" / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = ("policy.model=chat", "steps=1", "evaluation.resamples=100", "batch.max_tokens=250")
    printed = run(tmp_path, str(ROOT / "examples" / "dpo_chat.py"), *settings).splitlines()
    lines = [line for line in printed if line.startswith("seed ")]
    assert [line.partition(":")[0] for line in lines] == ["seed 0", "seed 1", "seed 2"]
    assert all("held-out preference accuracy 0.50 -> " in line for line in lines)
