"""Broken and hostile model folders: each is refused in one line that names file and key, before it takes memory."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.tiny_models import write_tiny_model
from burnish.catalogue import check_model_folder
from burnish.errors import InputError
from burnish.policies.classifier import load_classifier
from burnish.policies.loading import load_model, load_policy
from burnish.recipe.schema import LoRA
from tests.policies.broken_folders import (
    PROJECTION,
    Change,
    content,
    header,
    index,
    keys,
    link,
    pipe,
    weight,
    weights,
    write_adapter,
)
from tests.policies.tiny_classifiers import write_classifier

CONFIG, GENERATION, TOKENIZER, WEIGHTS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors",
)  # fmt: skip
ADAPTER, LORA = "adapter_config.json", "adapter_model.safetensors"
NORM = "model.norm.weight"


def config(**changes: object) -> Change:
    return keys(CONFIG, **changes)


def copied(source: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("whole") / "llama")


MODELS: list[tuple[Change, str]] = [
    (config(num_attention_heads=3), r"config\.json: .*not a multiple of the number of att"),
    (config(num_hidden_layers=10**7), r"config\.json: num_hidden_layers = 10000000 does not fit the 39 weights"),
    (config(num_hidden_layers=800), r"config\.json asks for more weights than its files have, 39 \(num_hidden_layers = 800"),
    (config(num_hidden_layers=5), r"its files lack 9 weights, the first is model\.layers\.4\."),
    (config(num_hidden_layers=3), r"config\.json: num_hidden_layers = 3, and its files have more layers \(such as 'mod"),
    (config(hidden_size=2**22, num_attention_heads=2**12), r"config\.json asks for .* \(hidden_size = 4194304\)"),
    (config(vocab_size=10**9), r"config\.json asks for .*Embedding.*\(vocab_size = 1000000000\)"),
    (config(vocab_size=-5), r"config\.json: vocab_size = -5 is not a size"),
    (config(intermediate_size=10**8), r"config\.json asks for .*\(intermediate_size = 100000000\)"),
    (config(intermediate_size=56), r"config\.json asks for .*\(intermediate_size = 56\).*file has \["),
    (config(max_position_embeddings=0), r"config\.json: max_position_embeddings = 0 is not a size"),
    (config(num_labels=10**9), r"config\.json: num_labels = 1000000000 is not between"),
    (config(text_config={"n_layers": 10**8}), r"config\.json: text_config\.n_layers = 100000000 does not fit"),
    (config(rms_norm_eps="x"), r"config\.json: rms_norm_eps = 'x'"),
    (config(rms_norm_eps=-0.5), r"config\.json: rms_norm_eps = -0\.5"),
    (config(attention_bias="maybe"), r"config\.json: .*attention_bias"),
    (config(eos_token_id="x"), r"config\.json: eos_token_id = 'x' is not the id"),
    (config(bos_token_id=True), r"config\.json: bos_token_id = True is not the id"),
    (config(eos_token_id=[1, 272]), r"config\.json: eos_token_id = 272 is beyond the model's 272 rows"),
    (config(pad_token_id=10**9), r"config\.json: pad_token_id = 1000000000 is beyond"),
    (config(head_dim=7), r"config\.json: .*even rotary dimension"),
    (config(layer_types=["x"]), r"config\.json: .*layer_types"),
    (config(initializer_range=math.nan), r"config\.json: initializer_range = nan"),
    (config(hidden_act="gleu"), r"config\.json: hidden_act = 'gleu'"),
    (config(rope_scaling={"rope_type": "spiral"}), r"config\.json: .*spiral"),
    (config(dtype="bfloat61"), r"config\.json: dtype = 'bfloat61' is not a type"),
    (config(torch_dtype=16), r"config\.json: torch_dtype = 16 is not a type"),
    (config(quantization_config={"quant_method": "own"}), r"config\.json: quantization_config is set: quantised"),
    (config(transformers_weights="../other.safetensors"), r"config\.json: transformers_weights is set"),
    (config(model_type="unheard"), r"config\.json: .*`unheard`"),
    (config(model_type=7), r"config\.json names no model_type"),
    (content(CONFIG, b"[]"), r"config\.json holds no JSON object"),
    (content(CONFIG, b'{"a"'), r"config\.json cannot be read"),
    (content(CONFIG, b'{"a":' * 90_000), r"config\.json cannot be read as JSON"),
    (header(shape=[-1, 4]), r"model\.safetensors: the weight 'lm_head\.weight' has shape = \[-1, 4\]"),
    (header(shape=[2**62, 2**62]), r"model\.safetensors: .*'lm_head\.weight' has shape"),
    (header(shape=[272, 33]), r"model\.safetensors: .*'lm_head\.weight' .*needs 35,904 bytes"),
    (header(dtype="Q9"), r"model\.safetensors: .*'lm_head\.weight' has dtype = 'Q9'"),
    (header(data_offsets=[0]), r"model\.safetensors: .*'lm_head\.weight' .*data_offsets = \[0\]"),
    (header(data_offsets="all"), r"model\.safetensors: .*'lm_head\.weight' has data_offsets = 'all'"),
    (content(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"), r"model\.safetensors is not a complete safetensors file"),
    (content(WEIGHTS, struct.pack("<Q", 2) + b"[]"), r"model\.safetensors is not a complete safetensors file"),
    (weight(math.nan), r"'model\.norm\.weight' has values that are not finite.*safetensors"),
    (weight(-math.inf), r"'model\.norm\.weight' has values that are not finite.*safetensors"),
    (weights(lambda all_: all_.update({NORM: all_[NORM][:8]})), r"config\.json asks for .*norm\.weight' of shape \[32\]"),
    (weights(lambda all_: all_.update({NORM: all_[NORM].to(torch.int8)})), r"'model\.norm\.weight' has the type I8"),
    (weights(lambda all_: all_.pop(NORM)), r"its files lack 1 weights, the first is model\.norm\.weight"),
    (index({"x": "../llama/model.safetensors"}), r"index\.json: weight_map\['x'\] = '\.\./llama"),
    (index({"x": "/etc/hostname.safetensors"}), r"index\.json: weight_map\['x'\] = '/etc"),
    (index({"x": "model-00001-of-00001.bin"}), r"index\.json: weight_map\['x'\]"),
    (index({"x": ["a"]}), r"index\.json: weight_map\['x'\]"), (index(["x"]), r"index\.json has no weight_map"),
    (content("shard-00000-model-00001-of-00001.safetensors", b""), r"shard-00000-.* is a part of a distributed"),
    (keys(TOKENIZER, model_max_length="x"), r"tokenizer_config\.json: model_max_length = 'x' is not a number"),
    (keys(TOKENIZER, model_max_length=-1), r"tokenizer_config\.json: model_max_length = -1"),
    (keys(TOKENIZER, eos_token=3), r"tokenizer_config\.json: eos_token = 3"),
    (keys(TOKENIZER, pad_token={"content": None}), r"tokenizer_config\.json: pad_token = "),
    (keys(TOKENIZER, eos_token="<new>"), r"tokens beyond the model's 272 rows of embeddings \(272 '<new>'\)"),
    (keys(TOKENIZER, vocab_file="/etc/passwd"), r"tokenizer_config\.json: vocab_file = '/etc/passwd' leads out"),
    (keys(TOKENIZER, added_tokens_decoder=[]), r"tokenizer_config\.json: added_tokens_decoder"),
    (keys(TOKENIZER, chat_template=4.5), r"tokenizer_config\.json: chat_template = 4\.5 is not text"),
    (keys(TOKENIZER, chat_template="{{ messages"), r"tokenizer_config\.json: chat_template: .*cannot be used"),
    (keys(TOKENIZER, chat_template=[{"name": "x", "template": "x"}]), r"tokenizer_config\.json: chat_template: .*default"),
    (content("chat_template.jinja", b"Hello."), r"chat_template\.jinja: the chat template ignores"),
    (content("chat_template.jinja", b"\xff"), r"chat_template\.jinja is not text in UTF-8"),
    (content("tokenizer.json", b"{}"), r"tokenizer\.json cannot be read"),
    (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer_config\.json and vocabulary give no tokenizer"),
    (content(TOKENIZER, b"[]"), r"tokenizer_config\.json holds no JSON object"),
    (content("special_tokens_map.json", b"3"), r"special_tokens_map\.json holds no JSON object"),
    (content(GENERATION, b"[]"), r"generation_config\.json holds no JSON object"),
    (content(GENERATION, b"{"), r"generation_config\.json cannot be read"),
    (keys(GENERATION, suppress_tokens=7), r"generation_config\.json: TypeError"),
    (content(GENERATION, b'{"eos_token_id": "x"}'), r"generation_config\.json: eos_token_id = 'x'"),
    (content(GENERATION, b'{"eos_token_id": [1, 999]}'), r"generation_config\.json: eos_token_id = 999 is beyond"),
    (link(TOKENIZER, "/etc/hostname"), r"tokenizer_config\.json is a link that leads out of the model folder"),
    (link("chat_template.jinja", "../secret"), r"chat_template\.jinja is a link that leads nowhere"),
    (link("tokenizer.json", "tokenizer.json"), r"tokenizer\.json is a link that leads nowhere"),
    (link("vocab.txt", "/dev/zero"), r"vocab\.txt is neither a file nor a folder but a device"),
    (pipe("merges.txt"), r"merges\.txt is neither a file nor a folder but a pipe"),
    (pipe(WEIGHTS), r"model\.safetensors is neither a file nor a folder but a pipe"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), MODELS)
def test_a_model_is_refused_in_one_line(whole: Path, tmp_path: Path, change: Change, message: str) -> None:
    change(copied(whole, tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path, offline=True)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def lora(**changes: object) -> Change:
    return keys(ADAPTER, **changes)


FIRST = PROJECTION.format(0, "A")
MISSPELT = FIRST.replace("q_proj", "q_porj")
ADAPTERS: list[tuple[Change, str]] = [
    (lora(r=10**9), r"adapter_config\.json: r = 1000000000 does not fit adapter_model\.safetensors, .* rank is 2"),
    (lora(r=1), r"adapter_config\.json: r = 1 does not fit .*has the rank 2"),
    (lora(r=2.0), r"adapter_config\.json: r = 2\.0"),
    (lora(rank_pattern={"q_proj": 10**9}), r"adapter_config\.json: rank_pattern\['q_proj'\] = 1000000000"),
    (lora(rank_pattern=[1]), r"adapter_config\.json: rank_pattern"),
    (lora(lora_alpha=math.nan), r"adapter_config\.json: lora_alpha = nan"), (lora(lora_alpha=0), r"lora_alpha = 0 is not"),
    (lora(lora_alpha=-4), r"lora_alpha = -4 is not"), (lora(lora_alpha="4"), r"adapter_config\.json: lora_alpha = '4'"),
    (lora(alpha_pattern={"q_proj": math.inf}), r"adapter_config\.json: alpha_pattern\['q_proj'\] = inf"),
    (lora(lora_dropout="x"), r"adapter_config\.json: lora_dropout = 'x'"),
    (lora(target_modules=["q_porj"]), r"adapter_config\.json \(target_modules, .*'q_porj'"),
    (lora(target_modules="(q"), r"adapter_config\.json: target_modules = '\(q' is not a pattern"),
    (lora(target_modules=[1]), r"adapter_config\.json: target_modules = \[1\]"),
    (lora(target_modules=["q_proj", "v_proj"]), r"adapter_model\.safetensors lacks weights, 8 in all"),
    (lora(modules_to_save={"a": 1}), r"adapter_config\.json: modules_to_save"),
    (lora(bias="some"), r"adapter_config\.json .*bias: some"),
    (lora(peft_type="EVIL"), r"adapter_config\.json: peft_type = 'EVIL'"),
    (lora(peft_type="PROMPT_TUNING"), r"adapter_config\.json: peft_type .*learned prompt"),
    (lora(peft_type=None), r"adapter_config\.json: peft_type = None"),
    (lora(megatron_config={"a": 1}, megatron_core="antigravity"), r"adapter_config\.json: megatron_config"),
    (lora(layer_replication=[[0, 4], [0, 4]]), r"adapter_config\.json: layer_replication"),
    (lora(base_model_name_or_path=5), r"adapter_config\.json: base_model_name_or_path = 5"),
    (lora(base_model_name_or_path="./../llama"), r"adapter_config\.json: base_model_name_or_path = '\./\.\./llama'"),
    (lora(base_model_name_or_path="../llama"), r"adapter_config\.json: base_model_name_or_path"),
    (lora(base_model_name_or_path="owner/gone"), r"adapter_config\.json: base_model_name_or_path: .*'owner/gone'"),
    (lora(base_model_name_or_path="/etc"), r"/etc has no config\.json"),
    (lora(base_model_name_or_path="./"), r"adapter_config\.json names (its own folder|itself as the base model)"),
    (content(ADAPTER, b"null"), r"adapter_config\.json holds no JSON object"),
    (weights(lambda all_: all_[FIRST].fill_(math.nan), LORA), r"adapter_model\.safetensors: .*lora_A.* not finite"),
    (weights(lambda all_: all_.update({MISSPELT: all_.pop(FIRST)}), LORA), r"adapter_model\.safetensors .*q_p"),
    (weights(lambda all_: all_.pop(FIRST), LORA), r"adapter_model\.safetensors lacks weights, 1 in all.*layers\.0.*lora_A"),
    (weights(lambda all_: all_.update({FIRST: torch.ones(2, 16)}), LORA), r"adapter_model\.safetensors .*layers\.0"),
    (keys(TOKENIZER, bos_token=[]), r"tokenizer_config\.json: bos_token = \[\]"),
    (content(LORA, b"\x02\0\0\0\0\0\0\0{}x"), r"adapter_model\.safetensors has 11 bytes but its header needs 10"),
    (link(LORA, "/etc/hostname"), r"adapter_model\.safetensors is a link that leads out"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), ADAPTERS)
def test_an_adapter_is_refused_in_one_line(whole: Path, tmp_path: Path, change: Change, message: str) -> None:
    folder = write_adapter(tmp_path / "adapter", whole)
    change(folder)
    for load in (load_model, check_model_folder) if "base_model_name_or_path = " in message else (load_model,):
        with pytest.raises(InputError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


CLASSIFIERS: list[tuple[Change, str]] = [
    (config(id2label={"0": "a", "7": "b", "2": "c"}), r"config\.json: .*id2label"),
    (config(num_labels=10**8, id2label=None), r"config\.json: num_labels = 100000000"),
    (config(num_labels=4, id2label=None), r"config\.json asks for .*'classifier\..* of shape \[4\] \(.*num_labels"),
    (config(layer_norm_eps=math.nan), r"config\.json: layer_norm_eps = nan"),
    (config(max_position_embeddings=2**28), r"config\.json asks for .*\(max_position_embeddings = 268435456\)"),
    (
        weights(lambda all_: all_["classifier.bias"].fill_(math.inf)),
        r"'classifier\.bias' has values that are not finite",
    ),
]


@pytest.mark.parametrize(("change", "message"), CLASSIFIERS)
def test_a_classifier_is_refused_in_one_line(tmp_path: Path, change: Change, message: str) -> None:
    folder = write_classifier(tmp_path / "bert", "bert", pad=2, num_labels=3)
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_classifier(str(folder), offline=True)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_classifier_chooses_no_chunks(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "bert", "bert", pad=2, num_labels=3)
    config(chunk_size_feed_forward="x", attn_implementation="owner/kernel")(folder)
    assert load_classifier(str(folder), offline=True).labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_adapters_that_name_each_other(whole: Path, tmp_path: Path) -> None:
    first, second = (write_adapter(tmp_path / name, whole) for name in ("first", "second"))
    for one, other in ((first, second), (second, first)):
        keys(ADAPTER, base_model_name_or_path=str(other))(one)
    for load in (check_model_folder, load_model):
        with pytest.raises(
            InputError, match=r"adapter_config\.json: base_model_name_or_path leads through more than 8"
        ):
            load(first)


def test_an_adapter_of_another_model(tmp_path: Path, whole: Path) -> None:
    for name, sizes in (("wide", {"width": 48}), ("deep", {"layers": 6}), ("shallow", {"layers": 3})):
        folder = write_adapter(tmp_path / name, whole, **sizes)
        with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
            load_model(folder, offline=True)
    assert load_model(write_adapter(tmp_path / "own", whole), offline=True).device


@pytest.mark.parametrize("targets", [["q_porj"], ["q_proj", "o_porj"]])
def test_a_target_of_a_recipe_that_matches_nothing(whole: Path, targets: list[str]) -> None:
    with pytest.raises(InputError, match=r"^policy\.lora.*_porj") as caught:
        load_policy(whole, lora=LoRA(rank=2, targets=targets), offline=True)
    assert "\n" not in str(caught.value)


def test_what_a_config_chooses_besides_the_model_changes_nothing(whole: Path, tmp_path: Path) -> None:
    config(
        attn_implementation="flash_attention_9", _attn_implementation="owner/kernel",
        fusion_config={"all": True}, return_dict=False, auto_map={"AutoModelForCausalLM": "code.py--X"},
        architectures=["Unheard"], use_kernels=True, distributed_config={"tp_size": 2},
    )(copied(whole, tmp_path))  # fmt: skip
    keys(TOKENIZER, auto_map={"AutoTokenizer": ["code.py--X", None]})(tmp_path)
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    plain, model = (load_model(folder, offline=True).model for folder in (whole, tmp_path))
    assert model.config._attn_implementation == plain.config._attn_implementation
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert not (tmp_path / "ran").exists()


def test_links_of_the_hubs_cache_and_within_a_folder(whole: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    for part in ("blobs", "snapshots/1"):
        (cache / part).mkdir(parents=True)
    own = tmp_path / "own"
    own.mkdir()
    for number, path in enumerate(sorted(whole.iterdir())):
        (cache / "blobs" / str(number)).write_bytes(path.read_bytes())
        (cache / "snapshots/1" / path.name).symlink_to(f"../../blobs/{number}")
        (own / path.name).symlink_to(cache / "snapshots/1" / path.name)
    inner = copied(whole, tmp_path / "inner")
    (inner / WEIGHTS).rename(inner / "weights")
    (inner / WEIGHTS).symlink_to("weights")
    for folder in (cache / "snapshots/1", own, inner):
        assert load_model(folder, offline=True).device


def test_hostile_sizes_take_no_memory(whole: Path, tmp_path: Path) -> None:
    hostile: list[Change] = [
        config(hidden_size=2**22, num_attention_heads=2**12), config(vocab_size=2**36), config(num_hidden_layers=10**9),
        config(num_hidden_layers=999, intermediate_size=10**6), config(num_labels=10**9), header(shape=[2**30, 2**30]),
        config(model_type="gpt2", n_positions=2**30, n_embd=32), content(WEIGHTS, struct.pack("<Q", 2**40)),
        keys(TOKENIZER, chat_template="{{ 'x' * 10**11 }}"),
        keys(TOKENIZER, chat_template="{% set x = 'x' * 10**6 %}{% set x = x * 10**6 %}{{ x }}"),
    ]  # fmt: skip
    folders = []
    for number, change in enumerate(hostile):
        folders.append(copied(whole, tmp_path / str(number)))
        change(folders[-1])
    for number, change in enumerate((lora(r=10**9), lora(rank_pattern={".*": 10**9}))):
        folders.append(write_adapter(tmp_path / f"adapter-{number}", whole))
        change(folders[-1])
    script = (
        "import json, resource, sys\nfrom burnish.errors import InputError\n"
        "from burnish.policies.loading import load_model\nload_model(sys.argv[1], offline=True)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), -1))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (120, -1))\n"
        "for folder in json.loads(sys.argv[2]):\n    try:\n        load_model(folder, offline=True)\n"
        "        print('loaded', folder)\n    except InputError as error:\n        print('refused', error)\n"
    )
    command = [sys.executable, "-c", script, str(whole), json.dumps([str(folder) for folder in folders])]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(folders)
    for line, folder in zip(lines, folders, strict=True):
        assert line.startswith("refused ") and str(folder) in line and "allocate" not in line
