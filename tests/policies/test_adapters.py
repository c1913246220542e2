"""LoRA adapters of every kind against plain peft in transformers: trained, sampled, saved, merged, and turned off."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from burnish.errors import InputError
from burnish.generation.engine import make_sampler
from burnish.policies.adapters import ADAPTER_WEIGHTS
from burnish.policies.kernels.packing import packed_states
from burnish.policies.loading import load_model, load_policy
from burnish.policies.pretrained import quiet_transformers
from burnish.recipe.schema import LoRA
from burnish.types import Completion, Prompt, SamplingParams

PLAIN = SamplingParams(8)


def completions(model) -> list[Completion]:
    texts = [("The home team", " won the match"), ("The home team", " a"), ("a", "b"), ("Shares fell", " after")]
    made = []
    for prompt, text in texts:
        asked = Prompt(prompt, prompt)
        tokens = model.encode(text)
        made.append(Completion(asked, model.encode_prompt(asked), tokens, text, (0.0,) * len(tokens), "length"))
    return made


@torch.no_grad()
def plain_logprobs(model, texts) -> torch.Tensor:
    """Return the log-probabilities [T] of each text alone, by the model's own forward pass."""
    rows = []
    for one in texts:
        logits = model(input_ids=torch.tensor([one.prompt_ids + one.token_ids]), use_cache=False).logits[0].float()
        logprobs = logits.log_softmax(-1)[len(one.prompt_ids) - 1 : -1]
        rows.append(logprobs.gather(-1, torch.tensor(one.token_ids)[:, None]).squeeze(-1))
    return torch.cat(rows)


def moved(policy, scale: float = 0.05):
    """Move all trained weights at random."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return policy


def assert_exact(source, lora, folder, tolerance: float = 1e-4) -> None:
    """A trained adapter gives what plain peft, the sampler, the merged model and the base without it give."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = moved(load_policy(source, lora=lora, seed=1))
    texts = completions(policy)
    base = load_model(source).token_logprobs(texts)
    trained = policy.logprobs(texts, PLAIN).logprobs.detach().float()
    assert float((trained - base).abs().max()) > 0.05, "the adapter has an effect"
    torch.testing.assert_close(policy.reference.token_logprobs(texts), base, rtol=0, atol=tolerance)
    policy.save(folder)
    own = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of rank patterns that match experts only
        plain = plain_logprobs(PeftModel.from_pretrained(own, folder).eval(), texts)
    torch.testing.assert_close(trained, plain, rtol=0, atol=tolerance)
    merged = load_model(folder)
    torch.testing.assert_close(trained, merged.token_logprobs(texts), rtol=0, atol=tolerance)
    torch.testing.assert_close(plain_logprobs(merged.model, texts), trained, rtol=0, atol=tolerance)
    again = load_policy(source, lora=lora, seed=2)
    again.load(folder)
    assert torch.equal(again.logprobs(texts, PLAIN).logprobs, policy.logprobs(texts, PLAIN).logprobs)
    groups = make_sampler(policy).sample(
        [one.prompt for one in texts[1:]], samples_per_prompt=2, sampling=SamplingParams(6), seed=(3,)
    )
    sampled = [one for group in groups for one in group.completions]
    recorded = torch.tensor([value for one in sampled for value in one.sampler_logprobs])
    torch.testing.assert_close(policy.logprobs(sampled, PLAIN).logprobs.detach(), recorded, rtol=0, atol=tolerance)


ADAPTERS = [("llama", {"dora": True, "rslora": True, "alpha": 8.0, "targets": ["q_proj", "down_proj"]})]
MORE_ADAPTERS = [
    ("qwen2", {"modules_to_save": ["lm_head"]}),
    ("mamba", {}),
    ("llama", {"rslora": True}),
    ("llama", {"dora": True}),
    ("llama", {"modules_to_save": ["lm_head", "input_layernorm"]}),
    ("llama", {"targets": ["lm_head", "q_proj"]}),
    ("llama", {"targets": [], "target_parameters": ["q_proj.weight", "down_proj.weight"]}),
    ("qwen2", {"modules_to_save": ["self_attn", "embed_tokens"], "targets": ["up_proj"]}),
    ("gpt2", {"modules_to_save": ["ln_f"]}),
    ("qwen3_moe", {"targets": ["q_proj"], "target_parameters": ["experts.down_proj"]}),
    ("lfm2", {}),
]


@pytest.mark.parametrize(
    ("kind", "options"), [*ADAPTERS, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE_ADAPTERS)]
)
def test_an_adapter_of_each_kind_is_exact(tiny, kind, options, tmp_path):
    assert_exact(tiny(kind), LoRA(rank=2, **options), tmp_path)


@pytest.fixture(scope="module")
def build(tiny, tmp_path_factory):
    """Return a function that writes a tiny random model of a type, with the tokenizer of "llama"."""

    def folder(kind: str, **options):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny("llama"))
        common = {
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, "initializer_range": 0.3,
        }  # fmt: skip
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**common, **options}))
        target = tmp_path_factory.mktemp(kind)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        return target

    return folder


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def test_layers_whose_keys_peft_renames_are_left_out_or_refused(build):
    # peft reads Laguna's 'shared_experts' by the renaming of whole models, and leaves their adapters at zero.
    source = build("laguna", **EXPERTS, shared_expert_intermediate_size=16)
    policy = load_policy(source, lora=LoRA(rank=2))
    assert policy.trainable() and not any("shared_experts" in name for name in policy.trainable())
    with pytest.raises(
        InputError, match=r"targets: '.*shared_experts\.up_proj' would be lost by peft.*remove 'up_proj'"
    ):
        load_policy(source, lora=LoRA(rank=2, targets=["up_proj"]))


@pytest.mark.slow
def test_an_adapter_whose_keys_peft_renames_is_restored_whole(build, tmp_path):
    source = build("laguna", **EXPERTS, shared_expert_intermediate_size=16)
    adapted = made_elsewhere(source, tmp_path, "all-linear")
    assert any("shared_experts" in name for name in load_file(tmp_path / ADAPTER_WEIGHTS))
    merged = load_model(tmp_path)
    texts = completions(merged)
    torch.testing.assert_close(merged.token_logprobs(texts), plain_logprobs(adapted, texts), rtol=0, atol=1e-4)


@pytest.mark.parametrize("change", ["lacks", pytest.param("has too many", marks=pytest.mark.slow)])
def test_an_adapter_that_fits_in_part_is_refused(tiny, change, tmp_path):
    policy = load_policy(tiny("llama"), lora=LoRA(rank=2))
    policy.save(tmp_path)
    saved = load_file(tmp_path / ADAPTER_WEIGHTS)
    name = sorted(saved)[0]
    if change == "lacks":
        del saved[name]
    else:
        saved[name.replace("layers.0", "layers.7")] = saved[name].clone()
    save_file(saved, tmp_path / ADAPTER_WEIGHTS)
    for call in (lambda: policy.load(tmp_path), lambda: load_model(tmp_path)):
        with pytest.raises(InputError, match=f"fits in part only.*{change}"):
            call()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "qwen2",
            {"targets": ["q_proj", "lm_head"]},
            r"policy\.lora\.targets: 'lm_head' shares its weight with 'model",
        ),
        ("qwen2", {"targets": ["embed_tokens"]}, r"'model\.embed_tokens' shares its weight with 'lm_head'"),
        ("gpt2", {"targets": [], "target_parameters": ["wte.weight"]}, r"'transformer\.wte' shares its weight"),
        ("mamba", {"targets": ["in_proj", "dt_proj"]}, r"'backbone\.layers\.0\.mixer\.dt_proj' has a weight that"),
        ("mamba", {"targets": ["out_proj"]}, r"policy\.lora: .*'out_proj' is incompatible"),
        (
            "llama",
            {"targets": ["q_proj", "k_prj"]},
            r"policy\.lora\.targets: the model has nothing of the name 'k_prj'",
        ),
        ("llama", {"modules_to_save": ["head"]}, r"policy\.lora\.modules_to_save: .* 'head'"),
        ("llama", {"target_parameters": ["experts.up"]}, r"policy\.lora\.target_parameters: .*'experts\.up'"),
        ("qwen3_moe", {"dora": True}, r"policy\.lora: .*dora"),
    ],
)
def test_layers_that_an_adapter_cannot_train_are_refused(tiny, kind, options, message):
    with pytest.raises(InputError, match=message):
        load_policy(tiny(kind), lora=LoRA(rank=2, **options))


def made_elsewhere(source, folder, targets):
    """Return a model with an adapter that peft alone made, and that has an effect, and save the adapter."""
    from peft import LoraConfig, get_peft_model

    own = load_model(source)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied weights
        config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
        adapted = get_peft_model(own.model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(source)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    own.tokenizer.save_pretrained(folder)
    return adapted


def test_an_adapter_of_a_tied_head_made_elsewhere_is_merged_into_the_head_only(tiny, tmp_path):
    adapted = made_elsewhere(tiny("qwen2"), tmp_path, ["lm_head"])
    merged = load_model(tmp_path)
    texts = completions(merged)
    torch.testing.assert_close(merged.token_logprobs(texts), plain_logprobs(adapted, texts), rtol=0, atol=1e-4)
    assert merged.model.config.tie_word_embeddings is False


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        pytest.param("qwen3_moe", EXPERTS, ATTENTION | {"experts", "gate"}, marks=pytest.mark.slow),
        pytest.param("mixtral", GPT_OSS, ATTENTION | {"experts", "gate"}, marks=pytest.mark.slow),
        pytest.param("gpt_oss", GPT_OSS, ATTENTION, marks=pytest.mark.slow),
        pytest.param("granitemoe", GPT_OSS, ATTENTION, marks=pytest.mark.slow),
        pytest.param("phimoe", GPT_OSS, ATTENTION, marks=pytest.mark.slow),
    ],
)
def test_all_linear_in_a_mixture_of_experts(build, kind, options, expected, tmp_path):
    source = build(kind, **options)
    policy = load_policy(source, lora=LoRA(rank=2))
    names = {name.split(".lora_")[0].removesuffix(".base_layer").rpartition(".")[2] for name in policy.trainable()}
    assert names == expected
    assert_exact(source, LoRA(rank=2), tmp_path)


def test_all_linear_of_mamba_leaves_out_what_peft_refuses_and_what_is_not_called(tiny, tmp_path):
    policy = load_policy(tiny("mamba"), lora=LoRA(rank=2))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in policy.trainable()} == {"in_proj", "x_proj"}
    policy.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["exclude_modules"] == ["dt_proj", "out_proj"]


def test_a_copied_attention_is_not_run_packed(tiny):
    # The copy has its own config, in which packed attention cannot be chosen: texts would see each other.
    policy = load_policy(tiny("llama"), lora=LoRA(rank=2, modules_to_save=["self_attn"], targets=["up_proj"]))
    assert policy.layout is not packed_states


def test_an_empty_list_of_targets_is_refused():
    with pytest.raises(ValueError, match="targets is empty"):
        LoRA(targets=[])
