"""Checks of one model type on one device, against what transformers alone computes on the CPU in float32."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import burnish
from burnish.algorithms.presets import PRESETS
from burnish.generation.engine import make_sampler
from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.loading import load_model, load_policy
from burnish.policies.pretrained import quiet_transformers
from burnish.recipe.combination import combine_rewards
from burnish.recipe.schema import LoRA, Optimizer, load_recipe
from burnish.run.checkpoint import read_optimizer, write_optimizer
from burnish.training.learner import Learner
from burnish.training.optimizer import build_optimizer
from burnish.training.step import train_step
from burnish.types import Completion, Prompt, SamplingParams

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Float32: nats, or a share of a gradient's largest entry. Bfloat16: a share of the largest number."""
TEXTS = (("The home", " team won the match."), ("The home", " a"), ("Shares fell after it", ", and rose."), ("a", "b"))
PROMPTS = [Prompt("p0", "The home team"), Prompt("p1", "Shares fell"), Prompt("p2", "a")]
STEP_RATE = 1e-3
LORA_TARGETS: dict[str, Any] = {"mamba": ["in_proj", "x_proj"]}
"""Of types whose layers peft does not adapt all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check measured, whether that is right, and what else there is to say."""

    measured: float
    passed: bool
    limit: str = ""
    alone: float | None = None
    """The same measured of transformers without burnish."""
    note: str = ""


def byte_tokenizer(size: int = 258) -> Any:
    """One token per byte, a beginning and an end; tokens that no text has fill it up to ``size``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<|begin|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"e{place:x}" for place in range(len(tokens), size)]
    tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=tokens[0], eos_token=tokens[1])


def config(kind: str, vocabulary: int) -> Any:
    """Three layers, wide enough for next-token distributions that are far from uniform."""
    from transformers import AutoConfig

    options = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "initializer_range": 0.15, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "mistral": {"sliding_window": 16},  # shorter than the texts
        "gemma3_text": {"sliding_window": 128, "query_pre_attn_scalar": 16},
        "gemma2": {"sliding_window": 128, "query_pre_attn_scalar": 16},
        "qwen3_moe": {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
        "mixtral": {"num_local_experts": 4, "sliding_window": None},
        "mamba": {"state_size": 8},
    }
    return AutoConfig.for_model(kind, **options, **own.get(kind, {}))


def build(kind: str, folder: Path) -> Path:
    """A random model of a type on disk, every weight off its initial value and a number of bfloat16."""
    from transformers import AutoModelForCausalLM

    tokenizer = byte_tokenizer()
    torch.manual_seed(7)
    with quiet_transformers(), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config(kind, len(tokenizer)), dtype=torch.float32)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
            parameter.copy_(parameter.bfloat16().float())
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder / kind


def plain_logprobs(model: Any, completions: Sequence[Completion]) -> Tensor:
    """[T], each text alone through transformers, without mask, cache or padding."""
    logprobs = []
    for one in completions:
        ids = torch.tensor([one.prompt_ids + one.token_ids], device=model.device)
        rows = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        rows = rows[len(one.prompt_ids) - 1 : -1]
        logprobs.append(rows.gather(-1, torch.tensor(one.token_ids, device=rows.device)[:, None]).squeeze(-1))
    return torch.cat(logprobs).cpu()


def apart(measured: Tensor, expected: Tensor, dtype: str) -> float:
    """The largest difference; in bfloat16 as a share of the largest expected number."""
    distance = float((measured.detach().double() - expected.detach().double()).abs().max())
    return distance / float(expected.abs().max()) if dtype == "bfloat16" else distance


def gradients_apart(measured: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference as a share of the largest entry."""
    zero = torch.zeros(())
    largest = max(float(grad.abs().max()) for grad in expected.values())
    distances = [
        float((measured.get(name, zero).cpu().double() - grad.double()).abs().max()) for name, grad in expected.items()
    ]
    return max(distances) / largest


def within(
    measured: float, dtype: str, *, tolerance: float | None = None, alone: float | None = None, note: str = ""
) -> Finding:
    """Right up to the dtype's tolerance or ``tolerance``; in bfloat16 also up to 1.5 times transformers' own error."""
    limit = TOLERANCE[dtype] if tolerance is None else tolerance
    if dtype == "bfloat16" and alone is not None:
        limit = max(limit, 1.5 * alone)
    return Finding(measured, measured <= limit, f"{limit:.2g}", alone, note)


class Case:
    """One type in one dtype on the device, with what transformers alone computes for it on the CPU."""

    def __init__(self, source: Path, dtype: str, device: str) -> None:
        self.source, self.dtype, self.device = source, dtype, device

    def load(self, lora: LoRA | None = None) -> CausalPolicy:
        return load_policy(self.source, lora=lora, dtype=self.dtype, device=self.device, offline=True, seed=1)

    @cached_property
    def lora(self) -> LoRA:
        return LoRA(rank=4, targets=LORA_TARGETS.get(self.source.name, "all-linear"))

    @cached_property
    def policy(self) -> CausalPolicy:
        return self.load()

    @cached_property
    def completions(self) -> list[Completion]:
        completions = []
        for prompt, text in TEXTS:
            asked, tokens = Prompt(prompt, prompt), (*self.policy.encode(text), 1)
            ids = self.policy.encode_prompt(asked)
            completions.append(Completion(asked, ids, tokens, text, (0.0,) * len(tokens), "stop"))
        return completions

    @cached_property
    def weights(self) -> Tensor:
        """[T], of the random functional whose gradient is compared."""
        count = sum(len(one.token_ids) for one in self.completions)
        return torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def alone(self, dtype: str, device: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Log-probabilities, gradient, and log-probabilities after a step of AdamW, by transformers and torch alone."""
        model = load_model(self.source, dtype=dtype, device=device, offline=True).model
        before = plain_logprobs(model, self.completions)
        (before.double() * self.weights).sum().backward()
        grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        torch.optim.AdamW(model.parameters(), lr=STEP_RATE, weight_decay=0.0).step()
        with torch.no_grad():
            return before.detach(), grads, plain_logprobs(model, self.completions)

    @cached_property
    def expected(self) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        return self.alone("float32", "cpu")

    @cached_property
    def yardstick(self) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        return self.alone(self.dtype, self.device)

    def logprobs(self, policy: CausalPolicy) -> Tensor:
        with torch.no_grad():
            return policy.logprobs(self.completions, SamplingParams(1)).logprobs

    def check_logprobs(self) -> Finding:
        off = apart(self.logprobs(self.policy), self.expected[0], self.dtype)
        alone = apart(self.yardstick[0], self.expected[0], self.dtype)
        return within(off, self.dtype, alone=alone, note=self.policy.padding_reason)

    def functional(self, policy: CausalPolicy) -> None:
        """Leaves the gradient of the random functional."""
        policy.model.zero_grad(set_to_none=True)
        logprobs = policy.logprobs(self.completions, SamplingParams(1)).logprobs
        (logprobs.double() * self.weights).sum().backward()

    def check_gradient(self) -> Finding:
        self.functional(self.policy)
        grads = {name: weight.grad for name, weight in self.policy.trainable().items() if weight.grad is not None}
        off, alone = (gradients_apart(one, self.expected[1]) for one in (grads, self.yardstick[1]))
        return within(off, self.dtype, alone=alone, note="of the largest entry")

    def check_sampler(self, lora: bool = False) -> Finding:
        policy = self.adapted() if lora else self.policy
        groups = make_sampler(policy).sample(
            PROMPTS, samples_per_prompt=6, sampling=SamplingParams(24, top_k=200), seed=(5,)
        )
        sampled = [one for group in groups for one in group.completions]
        recorded = torch.tensor([logprob for one in sampled for logprob in one.sampler_logprobs])
        with torch.no_grad():
            trained = policy.logprobs(sampled, SamplingParams(24, top_k=200)).logprobs
        return within(apart(recorded, trained, self.dtype), self.dtype)

    def check_saved(self, folder: Path) -> Finding:
        """A saved policy, loaded anew and loaded in place, gives the same log-probabilities to the bit."""
        folder.mkdir(parents=True)
        before = self.logprobs(self.policy)
        self.policy.save(folder)
        again = self.logprobs(load_policy(folder, dtype=self.dtype, device=self.device, offline=True))
        with torch.no_grad():
            for parameter in self.policy.trainable().values():
                parameter.mul_(0.5)
        self.policy.load(folder)
        off = max(apart(one, before, "float32") for one in (again, self.logprobs(self.policy)))
        return within(off, self.dtype, tolerance=0.0)

    def adapted(self) -> CausalPolicy:
        """With an adapter that does something."""
        policy = self.load(self.lora)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for name, parameter in policy.trainable().items():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        return policy

    def check_lora(self, folder: Path) -> Finding:
        """An adapter as it is trained, and merged when it is loaded."""
        folder.mkdir(parents=True)
        policy = self.adapted()
        policy.save(folder)
        merged = load_model(folder, dtype=self.dtype, device=self.device, offline=True)
        moved = apart(self.logprobs(policy), self.expected[0], "float32")
        off = apart(self.logprobs(policy), merged.token_logprobs(self.completions), self.dtype)
        return within(off, self.dtype, note=f"the adapter moves them by {moved:.2g}")

    def check_step(self, folder: Path) -> Finding:
        """One step of AdamW; and a second, from a state that was saved and restored."""
        folder.mkdir(parents=True)
        policy = self.load()
        before = {name: weight.detach().clone() for name, weight in policy.trainable().items()}
        optimizer = build_optimizer(policy, Optimizer(learning_rate=STEP_RATE))
        self.functional(policy)
        optimizer.step()
        off, alone = (apart(one, self.expected[2], self.dtype) for one in (self.logprobs(policy), self.yardstick[2]))
        moved = sum(int((weight != before[name]).sum()) for name, weight in policy.trainable().items())
        pushed = sum(int((weight.grad != 0).sum()) for weight in policy.trainable().values() if weight.grad is not None)
        write_optimizer(optimizer, policy.trainable(), folder)
        restored = build_optimizer(policy, Optimizer(learning_rate=STEP_RATE))
        read_optimizer(restored, policy.trainable(), folder)
        restored.step()
        shift = apart(self.expected[2], self.expected[0], "float32")
        note = f"the step moves them by {shift:.2g}; {moved / pushed:.1%} of the weights with a gradient moved"
        return within(off, self.dtype, alone=alone, note=note)

    def check_train_step(self, lora: bool = False) -> Finding:
        """A whole step of GRPO with a reference, on fresh samples."""
        learner = learner_for(self.load(self.lora if lora else None), prompts=PROMPTS, group=6, tokens=16)
        row = [train_step(learner).metrics for _ in range(2)][-1]
        limit = 1e-8 if self.dtype == "float32" else 1e-2
        note = f"mismatch_kl; loss {row['loss']:.2g}, grad_norm {row['grad_norm']:.2g}"
        return within(abs(row["mismatch_kl"]), self.dtype, tolerance=limit, note=note)

    def check_same_samples(self) -> Finding:
        runs = [
            make_sampler(self.policy).sample(PROMPTS, samples_per_prompt=32, sampling=SamplingParams(32), seed=(2,))
            for _ in range(2)
        ]
        texts = [[one.token_ids for group in groups for one in group.completions] for groups in runs]
        return within(
            sum(a != b for a, b in zip(*texts, strict=True)), self.dtype, tolerance=0.0, note="samples differ"
        )

    def check_same_weights(self) -> Finding:
        trained = []
        for _ in range(2):
            learner = learner_for(self.load(), prompts=PROMPTS, group=6, tokens=16)
            for _ in range(3):
                train_step(learner)
            trained.append(torch.cat([weight.detach().flatten() for weight in learner.policy.trainable().values()]))
        off = apart(trained[0].cpu(), trained[1].cpu(), "float32")
        return within(off, self.dtype, tolerance=0.0, note="the weights of two equal runs of 3 steps")

    def check_frequencies(self, draws: int) -> Finding:
        """Chi-square of first tokens among the 8 most probable, and of all, against transformers' softmax on the CPU."""
        model = load_model(self.source, device="cpu", offline=True).model
        ids = self.policy.encode_prompt(PROMPTS[0])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        scores = []
        for top_k in (8, 0):
            sampling = SamplingParams(1, top_k=top_k)
            groups = make_sampler(self.policy).sample(
                PROMPTS[:1], samples_per_prompt=draws, sampling=sampling, seed=(4,)
            )
            kept = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf) if top_k else logits
            counts = Counter(one.token_ids[0] for one in groups[0].completions)
            scores.append(surprise((kept.softmax(-1) * draws).tolist(), counts))
        return Finding(max(scores), max(scores) < 4, "4", note="(chi2 - df) / sqrt(2 df)")

    def check_greedy(self, tokens: int) -> Finding:
        groups = make_sampler(self.policy).sample(
            PROMPTS, samples_per_prompt=1, sampling=SamplingParams(tokens, top_k=1), seed=(0,)
        )
        differing = 0
        for group in groups:
            ids = torch.tensor([group.completions[0].prompt_ids], device=self.policy.device)
            options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 1}
            with quiet_transformers():
                made = self.policy.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            differing += tuple(made[0, ids.shape[1] :].tolist()) != group.completions[0].token_ids
        return within(differing, self.dtype, tolerance=0.0, note=f"texts of {tokens} tokens differ")


def surprise(expected: Sequence[float], counts: Counter[int]) -> float:
    """How many standard deviations chi-square is above its mean; tokens expected fewer than 5 times count as one."""
    rare = [token for token, number in enumerate(expected) if number < 5]
    cells = [(counts[token], number) for token, number in enumerate(expected) if number >= 5]
    if (mass := sum(expected[token] for token in rare)) >= 5:
        cells.append((sum(counts[token] for token in rare), mass))
    chi2 = sum((seen - number) ** 2 / number for seen, number in cells)
    return (chi2 - (len(cells) - 1)) / math.sqrt(2 * (len(cells) - 1))


@burnish.reward(name="share_of_letters")
def share_of_letters(text: str) -> float:
    """The share of the characters that are letters of the English alphabet."""
    return sum(one.isascii() and one.isalpha() for one in text) / len(text) if text else 0.0


def learner_for(
    policy: CausalPolicy, *, prompts: Sequence[Prompt], group: int, tokens: int, microbatch: int | None = None
) -> Learner:
    """A learner with GRPO, a KL term and the share of letters as its reward."""
    sampling = {"prompts_per_step": len(prompts), "samples_per_prompt": group, "max_new_tokens": tokens}
    recipe = load_recipe(
        {
            "name": "gpu-check", "task": {"use": "toy"}, "sampling": sampling, "reward": [{"use": "share_of_letters"}],
            "algorithm": {"use": "grpo", "kl": {"coefficient": 0.01}},
            "optimizer": {} if microbatch is None else {"tokens_per_microbatch": microbatch},
        }
    )  # fmt: skip
    scorer = combine_rewards(recipe.reward, policy.reference, decode=policy.decode)
    optimizer = build_optimizer(policy, recipe.optimizer)
    return Learner(recipe, policy, make_sampler(policy), scorer, prompts, PRESETS["grpo"], optimizer)
