"""Checks of a causal language model against a plain forward pass of transformers, one text at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.algorithms.presets import PRESETS
from burnish.catalogue.convert import resolve_model
from burnish.catalogue.local_models import adapter_base
from burnish.errors import InputError, one_line
from burnish.generation.engine import make_sampler
from burnish.policies.causal_lm import CausalModel, CausalPolicy
from burnish.policies.kernels.packing import packed_states
from burnish.policies.loading import load_policy
from burnish.policies.pretrained import quiet_transformers
from burnish.recipe.combination import combine_rewards
from burnish.recipe.schema import LoRA, load_recipe
from burnish.training.learner import Learner
from burnish.training.optimizer import build_optimizer
from burnish.training.step import train_step
from burnish.types import Completion, Prompt, SamplingParams

TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 2e-2}
"""Largest difference allowed: nats, or a share of a gradient's largest entry; in bfloat16 a share of the largest value."""
TEXTS = (  # prompts and completions of unequal lengths; two share their prompt
    ("The home team", " won the match in the last minute of the game."),
    ("The home team", " a"),
    ("Shares of the company fell sharply after it", ", and rose again on Friday."),
    ("a", "b and a text of many more tokens than its prompt has, which is longer than the others."),
)
PROMPTS = [Prompt("p0", "The home team"), Prompt("p1", "Shares of the company fell sharply"), Prompt("p2", "a")]
SCALES = 4.0
"""Factor of the head's weights in the check of large logits, where a soft cap shows."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Result of a check; ``alone`` is the same measured of transformers without burnish, where it was."""

    measured: float
    passed: bool
    limit: str = ""
    alone: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check's name and measurement, or in ``error`` the exception that it raised; ``refused`` if burnish named it."""

    name: str
    measurement: Measured | None
    error: str = ""
    refused: bool = False

    @property
    def passed(self) -> bool:
        return self.measurement is not None and self.measurement.passed

    def line(self) -> str:
        """Return the result as a line of a table."""
        if (result := self.measurement) is None:
            return f"{self.name:20s}{'refused' if self.refused else 'crash':8s}{self.error}"
        measured = f"{result.measured:.2g} (limit {result.limit})" if result.limit else ""
        return f"{self.name:20s}{'ok' if self.passed else 'WRONG':8s}{measured:26s}{result.note}".rstrip()

    def to_json(self) -> dict[str, Any]:
        result = self.measurement
        return {
            "check": self.name, "passed": self.passed, "refused": self.refused, "error": self.error,
            "measured": result.measured if result else None, "limit": result.limit if result else "",
            "note": result.note if result else "",
        }  # fmt: skip


@contextmanager
def plain_transformers(source: str | Path, dtype: str, device: str) -> Iterator[Any]:
    """Provide the model that transformers (and peft, for an adapter) loads, without burnish."""
    with quiet_transformers(), warnings.catch_warnings(action="ignore"):  # peft warns of its own patterns
        yield _load_plain(source, dtype).to(device).eval()


def _load_plain(source: str | Path, dtype: str) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils.peft_utils import find_adapter_config_file

    adapter = find_adapter_config_file(str(source), local_files_only=True)
    if adapter is None:
        auto: Any = AutoModelForCausalLM
        return auto.from_pretrained(source, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False)
    base = resolve_model(adapter_base(Path(adapter).parent), offline=True)  # a catalogue name, which peft does not know
    trained: Any = PeftModel.from_pretrained(_load_plain(base, dtype), str(Path(adapter).parent))
    return trained.merge_and_unload()


def plain_logprobs(model: Any, completions: Sequence[Completion], unused: Tensor) -> Tensor:
    """Return [T]: each text alone through transformers, without mask, cache, padding or ``unused`` rows of the head."""
    logprobs = []
    for one in completions:
        ids = torch.tensor([one.prompt_ids + one.token_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0].index_fill(-1, unused.to(ids.device), -math.inf)
        rows = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        rows = rows[len(one.prompt_ids) - 1 : -1]
        logprobs.append(rows.gather(-1, torch.tensor(one.token_ids, device=rows.device)[:, None]).squeeze(-1))
    return torch.cat(logprobs).cpu()


def apart(measured: Tensor, expected: Tensor, dtype: str) -> float:
    """Return the largest difference; in bfloat16 as a share of the largest expected number."""
    distance = float((measured.detach().double() - expected.detach().double()).abs().max())
    return distance / float(expected.abs().max()) if dtype == "bfloat16" else distance


def gradients_apart(measured: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference as a share of the largest entry."""
    zero = torch.zeros(())
    largest = max(float(grad.abs().max()) for grad in expected.values())
    distances = [
        float((measured.get(name, zero).cpu().double() - grad.double()).abs().max()) for name, grad in expected.items()
    ]
    return max(distances) / largest


def within(
    measured: float, dtype: str, *, tolerance: float | None = None, alone: float | None = None, note: str = ""
) -> Measured:
    """Compare with the dtype's tolerance or ``tolerance``; in bfloat16 also with 1.5 times transformers' own error."""
    limit = TOLERANCE[dtype] if tolerance is None else tolerance
    if dtype == "bfloat16" and alone is not None:
        limit = max(limit, 1.5 * alone)
    return Measured(measured, measured <= limit, f"{limit:.2g}", alone, note)


def make_learner(
    policy: CausalPolicy, *, prompts: Sequence[Prompt], group: int, tokens: int, microbatch: int | None = None
) -> Learner:
    """Return a learner with GRPO, a KL term and a reward that differs between random texts."""
    sampling = {"prompts_per_step": len(prompts), "samples_per_prompt": group, "max_new_tokens": tokens}
    recipe = load_recipe(
        {
            "name": "check", "task": {"use": "toy"}, "sampling": sampling, "reward": [{"use": "compression"}],
            "algorithm": {"use": "grpo", "kl": {"coefficient": 0.01}},
            "optimizer": {} if microbatch is None else {"tokens_per_microbatch": microbatch},
        }
    )  # fmt: skip
    scorer = combine_rewards(recipe.reward, policy.reference, decode=policy.decode)
    optimizer = build_optimizer(policy, recipe.optimizer)
    return Learner(recipe, policy, make_sampler(policy), scorer, prompts, PRESETS["grpo"], optimizer)


class ModelCase:
    """A model folder in one dtype on a device, with what transformers alone computes for it.

    Args:
        source: a folder or hub id of a model or an adapter.
        lora: the adapter of the LoRA checks.
        reference: dtype and device of the expected values.
    """

    def __init__(
        self,
        source: str | Path,
        dtype: str = "float32",
        device: str = "cpu",
        *,
        offline: bool = True,
        lora: LoRA | None = None,
        reference: tuple[str, str] = ("float32", "cpu"),
    ) -> None:
        self.source, self.dtype, self.device, self.reference = source, dtype, device, reference
        self.offline = offline
        self.lora = lora or LoRA(rank=4)

    def load(self, lora: LoRA | None = None, source: Path | None = None) -> CausalPolicy:
        return load_policy(
            source or self.source, lora=lora, dtype=self.dtype, device=self.device, offline=self.offline, seed=1
        )  # fmt: skip

    @cached_property
    def policy(self) -> CausalPolicy:
        return self.load()

    @cached_property
    def completions(self) -> list[Completion]:
        completions = []
        end = min(self.policy.end_ids, default=None)
        for text, answer in TEXTS:
            prompt = Prompt(text, text)
            tokens = self.policy.encode(answer) + (() if end is None else (end,))
            ids = self.policy.encode_prompt(prompt)
            completions.append(Completion(prompt, ids, tokens, answer, (0.0,) * len(tokens), "stop"))
        return completions

    @cached_property
    def weights(self) -> Tensor:
        """[T], of the random functional whose gradient is compared."""
        count = sum(len(one.token_ids) for one in self.completions)
        return torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    @cached_property
    def expected(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-probabilities [T] and the gradient of the functional by transformers alone."""
        return self.alone(*self.reference)

    def alone(self, dtype: str, device: str) -> tuple[Tensor, dict[str, Tensor]]:
        with plain_transformers(self.source, dtype, device) as model:
            with torch.no_grad():  # attention kernels that take a gradient may round in another way
                logprobs = self.plain(model, self.completions)
            (self.plain(model, self.completions).double() * self.weights).sum().backward()  # type: ignore[no-untyped-call]
            grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        return logprobs, grads

    @cached_property
    def yardstick(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The same in the dtype and on the device that are checked."""
        return self.expected if self.reference == (self.dtype, self.device) else self.alone(self.dtype, self.device)

    @cached_property
    def unused(self) -> Tensor:
        """Rows of the vocabulary without a token."""
        tokens = set(self.policy.tokenizer.get_vocab().values())
        rows = range(self.policy.model.config.get_text_config().vocab_size)
        return torch.tensor([row for row in rows if row not in tokens], dtype=torch.long)

    def plain(self, model: Any, completions: Sequence[Completion]) -> Tensor:
        """Return [T], the log-probabilities by transformers alone."""
        return plain_logprobs(model, completions, self.unused)

    def logprobs(self, policy: CausalModel) -> Tensor:
        return policy.token_logprobs(self.completions)

    def check_logprobs(self) -> Measured:
        off = apart(self.logprobs(self.policy), self.expected[0], self.dtype)
        alone = apart(self.yardstick[0], self.expected[0], self.dtype)
        return within(off, self.dtype, alone=alone, note=self.policy.padding_reason)

    def check_large_logits(self) -> Measured:
        """Log-probabilities where the head's weights have grown since the model was loaded."""
        policy = self.load()
        with plain_transformers(self.source, *self.reference) as model, torch.no_grad():
            for grown in (policy.model, model):
                if (head := grown.get_output_embeddings()) is not None:
                    head.weight.mul_(SCALES)
            expected = self.plain(model, self.completions)
        return within(apart(self.logprobs(policy), expected, self.dtype) / SCALES, self.dtype)

    def functional(self, policy: CausalPolicy) -> None:
        """Leave the gradient of the random functional."""
        policy.model.zero_grad(set_to_none=True)
        logprobs = policy.logprobs(self.completions, SamplingParams(1)).logprobs
        (logprobs.double() * self.weights).sum().backward()  # type: ignore[no-untyped-call]

    def check_gradient(self) -> Measured:
        self.functional(self.policy)
        grads = {name: weight.grad for name, weight in self.policy.trainable().items() if weight.grad is not None}
        off, alone = (gradients_apart(one, self.expected[1]) for one in (grads, self.yardstick[1]))
        return within(off, self.dtype, alone=alone, note="of the largest entry")

    def sampled(self, policy: CausalPolicy) -> tuple[list[Completion], Tensor]:
        """Return sampled completions and the log-probabilities [T] that the sampler recorded."""
        groups = make_sampler(policy).sample(PROMPTS, samples_per_prompt=4, sampling=SamplingParams(24), seed=(5,))
        completions = [one for group in groups for one in group.completions]
        return completions, torch.tensor(
            [logprob for one in completions for logprob in one.sampler_logprobs], dtype=torch.float64
        )

    @torch.no_grad()
    def check_sampler(self) -> Measured:
        completions, recorded = self.sampled(self.policy)
        with plain_transformers(self.source, *self.reference) as model:
            return within(apart(recorded, self.plain(model, completions), self.dtype), self.dtype)

    def check_saved(self, folder: Path) -> Measured:
        """A saved policy opens in burnish, in place and anew, and in transformers."""
        folder.mkdir(parents=True)
        policy = self.load()
        before = self.logprobs(policy)
        policy.save(folder)
        again = self.logprobs(self.load(source=folder))
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.mul_(0.5)
        policy.load(folder)
        off = max(apart(one, before, "float32") for one in (again, self.logprobs(policy)))
        with plain_transformers(folder, *self.reference) as model, torch.no_grad():
            outside = apart(self.plain(model, self.completions), self.expected[0], "float32")
        return within(max(off, outside), self.dtype, tolerance=0.0, note=f"in transformers {outside:.2g}")

    def adapted(self) -> CausalPolicy:
        """Return the policy with an adapter that has an effect."""
        policy = self.load(self.lora)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for name, parameter in policy.trainable().items():
                if "lora_B" in name or "lora_embedding_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        return policy

    def check_lora(self, folder: Path) -> Measured:
        """An adapter as it is trained, loaded by burnish, and merged by peft; and what its sampler records."""
        folder.mkdir(parents=True)
        policy = self.adapted()
        policy.save(folder)
        trained, loaded = self.logprobs(policy), self.logprobs(self.load(source=folder))
        completions, recorded = self.sampled(policy)
        with plain_transformers(folder, *self.reference) as model, torch.no_grad():
            merged, sampled = self.plain(model, self.completions), self.plain(model, completions)
        moved = apart(trained, self.expected[0], "float32")
        parts = {
            "trained": apart(trained, merged, self.dtype), "loaded": apart(loaded, merged, self.dtype),
            "sampled": apart(recorded, sampled, self.dtype),
        }  # fmt: skip
        worst = max(parts, key=lambda name: parts[name])
        note = f"{worst} against merged; the adapter moves them by {moved:.2g}"
        result = within(parts[worst], self.dtype, note=note)
        return result if moved > 0 else Measured(moved, False, "> 0", note="the adapter changes nothing")

    def check_step(self, lora: bool = False) -> Measured:
        """Two steps of GRPO with a reference, on fresh samples; finite, with weights that move."""
        policy = self.adapted() if lora else self.load()
        before = {name: weight.detach().clone() for name, weight in policy.trainable().items()}
        learner = make_learner(policy, prompts=PROMPTS, group=4, tokens=12)
        row = [train_step(learner).metrics for _ in range(2)][-1]
        moved = sum(int((weight != before[name]).sum()) for name, weight in policy.trainable().items())
        limit = 1e-2 if self.dtype == "bfloat16" else 1e-8
        note = f"mismatch_kl; loss {row['loss']:.2g}, grad_norm {row['grad_norm']:.2g}, {moved} weights moved"
        if not moved or not all(math.isfinite(row[name]) for name in ("loss", "grad_norm", "mismatch_kl")):
            return Measured(row["mismatch_kl"], False, "finite, moved", note=note)
        return within(abs(row["mismatch_kl"]), self.dtype, tolerance=limit, note=note)


def describe_layout(model: CausalModel) -> str:
    """Return 'packed', or 'plain: REASON' or 'own head: REASON'."""
    if model.layout is packed_states:
        return "packed"
    return f"{'own head' if model.layout is None else 'plain'}: {model.padding_reason}"


def check_model(
    source: str | Path, scratch: Path, *, dtype: str = "float32", lora: LoRA | None = None, offline: bool = True
) -> Iterator[CheckResult]:
    """Yield every check of a model on the CPU as it ends; the first, loading, ends them if it fails.

    Args:
        scratch: an existing folder for saved copies.
    """
    case = ModelCase(source, dtype, lora=lora, reference=(dtype, "cpu"), offline=offline)

    def load() -> Measured:
        make_sampler(case.policy)
        return Measured(0.0, True, note=describe_layout(case.policy))

    loaded = run_check("loading", load)
    yield loaded
    if loaded.error:
        return
    checks: dict[str, Callable[[], Measured]] = {
        "log-probabilities": case.check_logprobs,
        "large logits": case.check_large_logits,
        "sampler": case.check_sampler,
        "gradient": case.check_gradient,
        "saved": lambda: case.check_saved(scratch / "saved"),
        "LoRA": lambda: case.check_lora(scratch / "adapter"),
        "full step": case.check_step,
        "LoRA step": lambda: case.check_step(lora=True),
    }
    yield from (run_check(name, call) for name, call in checks.items())


def run_check(name: str, call: Callable[[], Measured]) -> CheckResult:
    """Run a check; an exception becomes a result."""
    try:
        return CheckResult(name, call())
    except InputError as error:
        return CheckResult(name, None, one_line(error)[:300], refused=True)
    except Exception as error:  # an architecture may fail in any way
        return CheckResult(name, None, f"{type(error).__name__}: {one_line(error)[:300]}")


def verdict(results: Sequence[CheckResult]) -> str:
    """Return 'exact', or what is not: 'wrong: ...', 'crash: ...' or 'refused: ...', the worst first."""
    wrong = [f"{one.name} {one.measurement.measured:.2g}" for one in results if one.measurement and not one.passed]
    if wrong:
        return f"wrong: {', '.join(wrong)}"
    for kind, refused in (("crash", False), ("refused", True)):
        for one in results:
            if one.error and one.refused is refused:
                return f"{kind}: {'' if one.name == 'loading' else one.name + ': '}{one.error}"
    return "exact"
