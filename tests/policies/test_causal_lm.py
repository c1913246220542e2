"""Hugging Face models as policies: encoding, log-probabilities compared with a slow reference, LoRA, saving."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from burnish.backends.reference_cache import CachedReference
from burnish.errors import InputError
from burnish.policies.kernels.layout_probe import LayoutChoice
from burnish.policies.kernels.packing import packed_states, padded_states
from burnish.policies.loading import load_model, load_policy
from burnish.recipe.schema import LoRA
from burnish.types import Completion, Prompt, SamplingParams

KINDS = ["llama", "gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen2", "neox", "qwen3_moe"))]
PLAIN = SamplingParams(8)


def completion(model, prompt: str, text: str, *, end: bool = False) -> Completion:
    asked = Prompt(f"id of {prompt}", prompt)
    tokens = model.encode(text) + ((1,) if end else ())
    return Completion(
        asked, model.encode_prompt(asked), tokens, text, (0.0,) * len(tokens), "stop" if end else "length"
    )


def several(model) -> list[Completion]:
    return [
        completion(model, "The home team", " won the match", end=True),
        completion(model, "我爱", "你。"),
        completion(model, "The home team", " a"),
        completion(model, "Shares fell after the company said that it would", " cut one thousand jobs.", end=True),
        completion(model, "a", "b"),
    ]


def one_by_one(model, completions, temperature: float = 1.0) -> torch.Tensor:
    """Return the log-probabilities [T] of sequences that are run one at a time, without mask, cache or padding."""
    found = []
    for one in completions:
        ids = torch.tensor([one.prompt_ids + one.token_ids])
        logprobs = (model.model(input_ids=ids).logits[0] / temperature).log_softmax(-1)
        first = len(one.prompt_ids) - 1
        found += [logprobs[first + index, token] for index, token in enumerate(one.token_ids)]
    return torch.stack(found)


class TestEncoding:
    def test_an_empty_prompt_begins_with_token_0(self, tiny):
        # Code that took the id 0 for "no such token" would begin with the end-of-text token instead.
        assert load_model(tiny("llama")).encode_prompt(Prompt("p", "")) == (0,)

    def test_an_empty_prompt_without_bos_begins_with_eos_and_without_both_is_refused(self, tiny):
        model = load_model(tiny("llama"))
        model.tokenizer.bos_token = None
        assert model.encode_prompt(Prompt("p", "")) == (1,)
        model.tokenizer.eos_token = None
        with pytest.raises(InputError, match="prompt 'p' is empty"):
            model.encode_prompt(Prompt("p", ""))

    def test_an_end_token_added_by_the_tokenizer_is_removed_from_prompts(self, tiny):
        from tokenizers.processors import TemplateProcessing

        model = load_model(tiny("llama"))
        bare = model.encode_prompt(Prompt("p", "The home"))
        model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|begin|> $A <|end|>", special_tokens=[("<|begin|>", 0), ("<|end|>", 1)]
        )
        assert model.encode_prompt(Prompt("p", "The home")) == (0, *bare)
        assert model.encode("The home") == bare

    def test_decoding_restores_the_text(self, tiny):
        model = load_model(tiny("llama"))
        for text in ("我爱你。", "  two spaces , and .", "\u00e9\ud55c\U0001f600\n"):
            assert model.decode(model.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
class TestLogprobs:
    def test_equal_those_of_sequences_run_one_at_a_time(self, tiny, kind):
        policy = load_policy(tiny(kind), dtype="float64")
        completions = several(policy)
        with torch.no_grad():
            expected = one_by_one(policy, completions)
            for layout in (padded_states, packed_states):
                policy.layout = layout
                found = policy.logprobs(completions, PLAIN)
                torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=1e-11)
                torch.testing.assert_close(policy.token_logprobs(completions), expected, rtol=0, atol=1e-11)
                torch.testing.assert_close(
                    policy.token_logprobs(completions, 0.7), one_by_one(policy, completions, 0.7), rtol=0, atol=1e-11
                )

    def test_entropy_follows_its_definition(self, tiny, kind):
        policy = load_policy(tiny(kind), dtype="float64")
        one = completion(policy, "The home team", " won")
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([one.prompt_ids + one.token_ids])).logits[0]
            p = logits[len(one.prompt_ids) - 1 : -1].softmax(-1)
            found = policy.logprobs([one], PLAIN).entropy
        torch.testing.assert_close(found, -(p * p.log()).sum(-1), rtol=0, atol=1e-11)

    def test_padding_token_does_not_matter(self, tiny, kind, monkeypatch):
        model = load_model(tiny(kind), dtype="float64")
        found = []
        for filler in (0, 250):
            monkeypatch.setattr("burnish.policies.kernels.packing.PAD_ID", filler)
            with torch.no_grad():
                found.append(padded_states(model.model, several(model))[0])
        torch.testing.assert_close(*found, rtol=0, atol=1e-12)

    def test_empty_completions(self, tiny, kind):
        model = load_policy(tiny(kind))
        empty = [completion(model, "The home team", ""), completion(model, "a", "")]
        one = completion(model, "a", "b")
        for model.layout in (padded_states, packed_states):
            assert model.token_logprobs(empty).shape == (0,)
            assert model.logprobs(empty, PLAIN).entropy.shape == (0,)
            torch.testing.assert_close(model.token_logprobs([*empty, one]), model.token_logprobs([one]))

    def test_the_packed_layout_is_chosen(self, tiny, kind):
        model = load_model(tiny(kind))
        assert (model.layout, model.padding_reason) == (packed_states, "")


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_the_layout_is_probed_once_per_load(tiny, lora, monkeypatch):
    probed = []

    def probe(model):
        probed.append(model)
        return LayoutChoice(padded_states, "because")

    monkeypatch.setattr("burnish.policies.causal_lm.choose_layout", probe)
    policy = load_policy(tiny("llama"), lora=lora)
    assert len(probed) == 1
    for model in (policy, policy.reference if lora else policy.reference.loaded):
        assert (model.layout, model.padding_reason) == (padded_states, "because")


def test_more_completions_than_fit_into_one_pass(tiny):
    model = load_model(tiny("llama"), dtype="float64")
    completions = several(model) * 8
    with torch.no_grad():
        expected = one_by_one(model, completions)
    torch.testing.assert_close(model.token_logprobs(completions), expected, rtol=0, atol=1e-11)
    assert model.token_logprobs([]).tolist() == []


class TestPositions:
    @pytest.mark.parametrize("kind", KINDS)
    def test_are_read_from_the_config(self, tiny, kind):
        assert load_model(tiny(kind)).max_positions == 256

    def test_a_model_may_have_no_limit(self, tiny):
        model = load_model(tiny("llama"))
        model.model.config.max_position_embeddings = -1
        assert model.max_positions is None

    def test_a_text_that_is_too_long_is_refused(self, tiny):
        model = load_model(tiny("gpt2"))
        one = completion(model, "a", "b" * 300)
        assert len(one.prompt_ids + one.token_ids) > 256
        with pytest.raises(InputError, match="does not fit into the model's 256 positions"):
            model.token_logprobs([one])


class TestReference:
    def test_does_not_change_with_training(self, tiny):
        policy = load_policy(tiny("llama"))
        before = policy.reference.token_logprobs(several(policy))
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.add_(0.05)
        assert torch.equal(policy.reference.token_logprobs(several(policy)), before)
        assert not torch.allclose(policy.token_logprobs(several(policy)), before, atol=0.01)

    def test_with_lora_it_is_the_same_model_without_the_adapter(self, tiny):
        policy = load_policy(tiny("llama"), lora=LoRA(rank=4))
        base = load_model(tiny("llama")).token_logprobs(several(policy))
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.add_(0.05)
        torch.testing.assert_close(policy.reference.token_logprobs(several(policy)), base, rtol=0, atol=1e-5)
        assert not torch.allclose(policy.token_logprobs(several(policy)), base, atol=0.01)
        assert policy.reference.model is policy.model
        # The adapter is active again after a call of the reference.
        assert not torch.allclose(policy.token_logprobs(several(policy)), base, atol=0.01)

    def test_lora_trains_only_the_adapter_and_starts_equal_to_the_base(self, tiny):
        policy = load_policy(tiny("llama"), lora=LoRA(rank=4))
        assert policy.trainable()
        assert all("lora_" in name for name in policy.trainable())
        torch.testing.assert_close(
            policy.token_logprobs(several(policy)), load_model(tiny("llama")).token_logprobs(several(policy))
        )

    def test_initial_lora_weights_depend_on_the_seed(self, tiny):
        def weights(seed: int) -> list[torch.Tensor]:
            return [p.detach() for p in load_policy(tiny("llama"), lora=LoRA(rank=2), seed=seed).trainable().values()]

        state = torch.random.get_rng_state()
        first, again, other = weights(1), weights(1), weights(2)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert torch.equal(torch.random.get_rng_state(), state), "the process's random state is unchanged"


class TestCachedReference:
    class Counting:
        """Reference that gives each token the number of completions in the call, and records that number per call."""

        def __init__(self) -> None:
            self.asked: list[int] = []

        def token_logprobs(self, completions, temperature: float = 1.0) -> torch.Tensor:
            self.asked.append(len(completions))
            return torch.full((sum(len(one.token_ids) for one in completions),), float(len(completions)))

    @staticmethod
    def fresh(count: int) -> list[Completion]:
        return [Completion(Prompt("p", ""), (0,), (index, 5), "", (0.0, 0.0), "length") for index in range(count)]

    def test_known_completions_are_not_computed_again(self):
        inner = self.Counting()
        reference, completions = CachedReference(inner), self.fresh(40)
        # A reward asks in chunks; the KL term then asks for all completions.
        chunks = [reference.token_logprobs(completions[start : start + 16]) for start in (0, 16, 32)]
        whole = reference.token_logprobs(completions)
        assert inner.asked == [16, 16, 8]
        assert torch.equal(torch.cat(chunks), whole)

    def test_another_temperature_is_computed_again(self):
        inner = self.Counting()
        reference, completions = CachedReference(inner), self.fresh(3)
        reference.token_logprobs(completions)
        reference.token_logprobs(completions, 0.5)
        assert inner.asked == [3, 3]

    def test_equal_samples_of_another_step_are_computed_again(self):
        # The last bits of a forward pass depend on the rest of its batch, and a resumed run has not seen earlier steps.
        inner = self.Counting()
        reference = CachedReference(inner)
        reference.token_logprobs(self.fresh(3))
        assert reference.token_logprobs(self.fresh(5)).tolist() == [5.0] * 10

    def test_order_and_repeats(self):
        inner = self.Counting()
        reference, completions = CachedReference(inner), self.fresh(3)
        reference.token_logprobs(completions[:2])
        found = reference.token_logprobs([completions[2], completions[0]])
        assert found.tolist() == [1.0, 1.0, 2.0, 2.0]
        assert reference.token_logprobs([]).tolist() == []


def moved(policy) -> None:
    """Move all trained weights by random amounts."""
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


class TestSaving:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_saved_model_loads_with_the_same_bits(self, tiny, kind, tmp_path):
        policy, other = load_policy(tiny(kind)), load_policy(tiny(kind))
        moved(policy)
        policy.save(tmp_path)
        other.load(tmp_path)
        expected = policy.token_logprobs(several(policy))
        assert torch.equal(other.token_logprobs(several(policy)), expected)
        assert torch.equal(load_model(tmp_path).token_logprobs(several(policy)), expected)
        assert load_model(tmp_path).encode("我爱你。") == policy.encode("我爱你。")
        assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]

    def test_a_saved_adapter_loads_with_the_same_bits(self, tiny, tmp_path):
        policy = load_policy(tiny("llama"), lora=LoRA(rank=4))
        other = load_policy(tiny("llama"), lora=LoRA(rank=4), seed=99)
        moved(policy)
        policy.save(tmp_path)
        other.load(tmp_path)
        expected = policy.token_logprobs(several(policy))
        assert torch.equal(other.token_logprobs(several(policy)), expected)
        torch.testing.assert_close(load_model(tmp_path).token_logprobs(several(policy)), expected, rtol=0, atol=1e-4)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        assert sum(value.numel() for value in saved.values()) == sum(p.numel() for p in policy.trainable().values())

    @pytest.mark.slow
    def test_an_adapter_on_an_adapter(self, tiny, tmp_path):
        first = load_policy(tiny("llama"), lora=LoRA(rank=2))
        moved(first)
        (tmp_path / "first").mkdir()
        first.save(tmp_path / "first")
        second = load_policy(tmp_path / "first", lora=LoRA(rank=2))
        moved(second)
        (tmp_path / "second").mkdir()
        second.save(tmp_path / "second")
        described = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
        assert described["base_model_name_or_path"] == str(tmp_path / "first")
        expected = second.token_logprobs(several(second))
        assert not torch.allclose(first.token_logprobs(several(first)), expected, atol=0.01)
        found = load_model(tmp_path / "second").token_logprobs(several(second))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    def test_a_config_beside_an_adapter_changes_nothing(self, tiny, tmp_path):
        policy = load_policy(tiny("llama"), lora=LoRA(rank=2))
        moved(policy)
        policy.save(tmp_path)
        expected = load_model(tmp_path).token_logprobs(several(policy))
        shutil.copy(tiny("llama") / "config.json", tmp_path)
        assert torch.equal(load_model(tmp_path).token_logprobs(several(policy)), expected)

    @pytest.mark.parametrize("config_too", [True, False])
    def test_a_pickled_adapter_is_never_read(self, tiny, tmp_path, config_too, monkeypatch):
        load_policy(tiny("llama"), lora=LoRA(rank=2)).save(tmp_path)
        torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
        (tmp_path / "adapter_model.safetensors").unlink()
        if config_too:
            shutil.copy(tiny("llama") / "config.json", tmp_path)
            shutil.copy(tiny("llama") / "model.safetensors", tmp_path)
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
        with pytest.raises(InputError, match=r"cannot be loaded.*adapter_model\.safetensors"):
            load_model(tmp_path)

    def test_sharded_weights(self, tiny, tmp_path):
        policy = load_policy(tiny("llama"))
        policy.model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.zero_()
        policy.load(tmp_path)
        assert torch.equal(
            policy.token_logprobs(several(policy)), load_model(tiny("llama")).token_logprobs(several(policy))
        )

    def test_weights_of_another_model_are_refused_and_nothing_changes(self, tiny, tmp_path):
        policy = load_policy(tiny("llama"))
        before = policy.token_logprobs(several(policy))
        with pytest.raises(InputError, match="no weight"):
            policy.load(tiny("gpt2"))
        assert torch.equal(policy.token_logprobs(several(policy)), before)

    def test_an_adapter_cannot_be_loaded_as_a_whole_model(self, tiny, tmp_path):
        load_policy(tiny("llama"), lora=LoRA(rank=2)).save(tmp_path)
        with pytest.raises(InputError, match="holds an adapter, and this policy has none"):
            load_policy(tiny("llama")).load(tmp_path)

    def test_nothing_is_unpickled(self, tiny, tmp_path):
        folder = shutil.copytree(tiny("llama"), tmp_path / "pickled")
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(InputError, match="cannot be loaded"):
            load_model(folder)

    def test_code_in_a_model_folder_is_not_run(self, tiny, tmp_path):
        folder = shutil.copytree(tiny("llama"), tmp_path / "remote")
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="cannot be loaded"):
            load_model(folder)
        assert not (tmp_path / "ran").exists()


def test_a_released_reference_is_loaded_again(tiny):
    policy = load_policy(tiny("llama"))
    completions = several(policy)
    first = policy.reference.token_logprobs(completions)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.5)
    policy.reference.release()
    assert torch.equal(policy.reference.token_logprobs(completions), first), "the weights that training started from"
    assert not torch.allclose(policy.token_logprobs(completions), first, atol=1e-2)
    assert not any(parameter.requires_grad for parameter in policy.reference.loaded.model.parameters())


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_a_model_that_cannot_be_packed_is_padded_and_the_reason_is_kept(tiny, kind):
    policy = load_policy(tiny(kind), dtype="float64")
    completions = several(policy)
    assert policy.layout is not packed_states and policy.padding_reason
    with torch.no_grad():
        found = policy.logprobs(completions, PLAIN).logprobs
    # Mamba's head returns float32 for weights of any dtype.
    torch.testing.assert_close(found.double(), one_by_one(policy, completions).double(), rtol=0, atol=1e-5)
