"""What a policy does on prompts it was never trained on: measured, written down, compared.

``measure`` samples and scores and keeps every number a completion; ``summary`` and ``compare`` make metrics of them
without a model, so a measurement that was written to a file can be compared again later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import regex

from burnish.errors import InputError
from burnish.evaluation.metrics import metrics_of
from burnish.rewards.library.fluency import negative_log_likelihoods
from burnish.text import WITHOUT_SPACES
from burnish.types import Completion, Prompt, SamplingParams

if TYPE_CHECKING:
    from burnish.protocols import HasReference, Observer, Sampler, Scorer

LONGEST_TRUTH = 512
"""Tokens of a reference that truth_perplexity reads at most: a whole article would not fit in one pass."""
# Han, kana, Thai, Lao, Burmese, Khmer and full-width punctuation: no space stands beside these.
_NO_SPACE_BESIDE = regex.compile(
    rf"[{WITHOUT_SPACES}\p{{Thai}}\p{{Lao}}\p{{Myanmar}}\p{{Khmer}}\u3000-\u303f\uff00-\uffef]"
)
_NO_SPACE_BEFORE = re.compile(r"[\s,.;:!?%)\]}’”…]")
_NO_SPACE_AFTER = re.compile(r"[\s(\[{‘“]")


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out completion and what was said of it.

    Attributes:
        prompt_id, prompt, reference: of its prompt.
        index: which of its prompt's samples.
        text: what was sampled.
        reward: R(tau).
        parts: name -> value before its weight.
        tokens: how many, the end-of-text token included.
        finish_reason: "stop" or "length".
        nll: sum over the tokens of -log p under the reference policy, nats.
        metrics: name -> value of what is measured besides and not trained on.
    """

    prompt_id: str
    prompt: str
    reference: str | None
    index: int
    text: str
    reward: float
    parts: Mapping[str, float]
    tokens: int
    finish_reason: str
    nll: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Truth:
    """How probable a prompt's true continuation is under the measured policy: nll is a sum over its tokens, nats."""

    prompt_id: str
    nll: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that was seen on the held-out prompts, number by number.

    Attributes:
        samples: P * G, a prompt's samples side by side.
        truths: one for each prompt with a reference.
        weights: of the reward's parts.
        metrics: name -> which way is better ("higher", "lower" or "neither") of the samples' further metrics.
    """

    samples: tuple[Sample, ...]
    truths: tuple[Truth, ...]
    weights: Mapping[str, float]
    metrics: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON text that ``from_json`` turns back into an equal measurement, every float to the last bit."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Reads what ``to_json`` wrote. Raises InputError where the text is something else."""
        try:
            data = json.loads(text)
            samples = tuple(Sample(**sample) for sample in data["samples"])
            truths = tuple(Truth(**truth) for truth in data["truths"])
            return cls(samples, truths, dict(data["weights"]), dict(data.get("metrics", {})))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"not a held-out measurement ({error}): evaluate again to write a new one") from error


def continuation(prompt: str, reference: str) -> str:
    """The reference as it continues the prompt: with a space before it where the two would run together.

    A language model learnt " word", not "word", to follow a finished word. No space is added where one is there
    already, before closing and after opening punctuation, and beside scripts that are written without spaces.
    """
    if not prompt or not reference:
        return reference
    last, first = prompt[-1], reference[0]
    written_without = _NO_SPACE_BESIDE.match(last) or _NO_SPACE_BESIDE.match(first)
    joined = written_without or _NO_SPACE_AFTER.match(last) or _NO_SPACE_BEFORE.match(first)
    return reference if joined else " " + reference


def measure(
    policy: HasReference,
    sampler: Sampler,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    sampling: SamplingParams,
    samples_per_prompt: int,
    seed: int | Sequence[int],
    metrics: Scorer | None = None,
    better: Mapping[str, str] | None = None,
    observer: Observer | None = None,
    prompts_per_batch: int = 32,
    policy_version: int = 0,
) -> Measurement:
    """Samples and scores the held-out prompts.

    Args:
        policy: what is measured; its ``reference`` says how natural the samples read.
        sampler: draws from the policy.
        scorer: the run's reward.
        prompts: P, with different ids.
        sampling: the distribution that is drawn from.
        samples_per_prompt: G.
        seed: of the sampler; give before and after the same, so that they share their random numbers.
        metrics: what is measured besides; each of its parts becomes a metric, and its total is not used.
        better: name of such a metric -> "higher" (where it is left out), "lower" or "neither".
        observer: told "evaluating", prompts done, prompts in all.
        prompts_per_batch: prompts that are sampled at once; bounds the memory and changes no number's meaning.
        policy_version: as recorded in the completions.

    Raises:
        InputError: no prompts, two of one id, or fewer than two completions in all, which no comparison could use.
        BurnishError: a reward failed.
    """
    _check_prompts(prompts, samples_per_prompt)
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    samples: list[Sample] = []
    truths: list[Truth] = []
    weights: Mapping[str, float] = {}
    ways: dict[str, str] = {}
    for start in range(0, len(prompts), prompts_per_batch):
        groups = sampler.sample(
            prompts[start : start + prompts_per_batch],
            samples_per_prompt=samples_per_prompt,
            sampling=sampling,
            seed=seeds,
            policy_version=policy_version,
        )
        # A sample's index is its place in its group: what before and after are paired by.
        indexed = [pair for group in groups for pair in enumerate(group.completions)]
        completions = [completion for _, completion in indexed]
        scores = scorer.score(completions)
        weights = scores.weights
        likelihoods = negative_log_likelihoods(completions, policy.reference)
        further = metrics.score(completions).parts if metrics else {}
        ways = {name: (better or {}).get(name, "higher") for name in further}
        for row, (index, completion) in enumerate(indexed):
            parts, found = ({name: float(value[row]) for name, value in of.items()} for of in (scores.parts, further))
            samples.append(_sample(completion, index, float(scores.total[row]), parts, likelihoods[row], found))
        truths.extend(_truths(policy, [group.completions[0] for group in groups]))
        if observer is not None:
            observer.progress("evaluating", min(start + prompts_per_batch, len(prompts)), len(prompts))
    return Measurement(tuple(samples), tuple(truths), dict(weights), ways)


def summary(measurement: Measurement, *, bleu_tokenize: str = "auto") -> dict[str, float]:
    """The metrics of one measurement, under the names that ``compare`` uses.

    reward, reward/<part>, metric/<name>: means. perplexity: of the samples under the reference policy.
    truth_perplexity: of the true continuations under the measured policy. bleu, chrf: corpus level, 0 to 100.
    distinct_1, distinct_2: corpus level, of words, 0 to 1; they fall as texts get longer. length: mean tokens. Left out:
    bleu, chrf and truth_perplexity where no prompt has a reference; a perplexity where some token has probability 0.
    """
    return {metric.name: metric.value(metric.data) for metric in metrics_of(measurement, bleu_tokenize)}


def compare(
    before: Measurement, after: Measurement, *, resamples: int = 1000, seed: int = 0, bleu_tokenize: str = "auto"
) -> dict[str, dict[str, Any]]:
    """Every metric of ``summary``, before and after, with the interval and p-value of the difference.

    The units are the prompts, each with all its samples (with only one prompt, its samples, paired by index; the
    answer then holds for that prompt alone). Left out besides what ``summary`` leaves out: metrics with fewer than two
    units; parts that only one of the two has; and the reward, where the two weigh their parts differently.

    Returns:
        Metric -> ``{before, after, difference, interval: [lo, hi], p_value, n, better}``, in a fixed order; ``better``
        is "higher", "lower" or None.

    Raises:
        InputError: the two are not measurements of the same prompts with as many samples.
    """
    after = _aligned(before, after)
    second = {metric.name: metric for metric in metrics_of(after, bleu_tokenize)}
    table: dict[str, dict[str, Any]] = {}
    for metric in metrics_of(before, bleu_tokenize):
        if metric.name not in second or metric.n < 2:
            continue
        if metric.name == "reward" and before.weights != after.weights:
            continue
        result = metric.compare(metric.data, second[metric.name].data, resamples, seed)
        table[metric.name] = {**asdict(result), "interval": list(result.interval), "better": metric.better}
    return table


def _aligned(before: Measurement, after: Measurement) -> Measurement:
    """``after`` in the order of ``before``. Raises InputError where they do not measure the same."""

    def by_key(samples: Sequence[Sample]) -> dict[Hashable, Sample]:
        return {(sample.prompt_id, sample.index, sample.prompt, sample.reference): sample for sample in samples}

    first, second = by_key(before.samples), by_key(after.samples)
    if first.keys() != second.keys():
        odd = first.keys() ^ second.keys()
        ids = sorted({sample.prompt_id for key, sample in (first | second).items() if key in odd})
        raise InputError(
            f"the two measurements differ in prompt '{ids[0]}' (and {len(ids) - 1} more), its text, reference or "
            "samples: evaluate both on the same task with as many samples a prompt"
        )
    truths = {truth.prompt_id: truth for truth in after.truths}
    return Measurement(
        tuple(second[key] for key in first),
        tuple(truths[truth.prompt_id] for truth in before.truths if truth.prompt_id in truths),
        after.weights,
        after.metrics,
    )


def _check_prompts(prompts: Sequence[Prompt], samples_per_prompt: int) -> None:
    if not prompts:
        raise InputError("there are no held-out prompts: give the task some, or leave evaluation out")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise InputError(f"two held-out prompts have the id '{prompt.id}': ids must differ")
        seen.add(prompt.id)
    if len(prompts) * samples_per_prompt < 2:
        raise InputError(
            "one held-out completion proves nothing: raise evaluation.prompts or evaluation.samples_per_prompt"
        )


def _sample(
    completion: Completion,
    index: int,
    reward: float,
    parts: Mapping[str, float],
    nll: float,
    metrics: Mapping[str, float],
) -> Sample:
    prompt = completion.prompt
    return Sample(
        prompt_id=prompt.id,
        prompt=prompt.text,
        reference=prompt.reference,
        index=index,
        text=completion.text,
        reward=reward,
        parts=parts,
        tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        nll=nll,
        metrics=metrics,
    )


def _truths(policy: HasReference, sampled: Sequence[Completion]) -> list[Truth]:
    """The true continuations, after the prompts as the sampler encoded them, as far as the policy's positions reach."""
    positions: int | None = getattr(policy, "max_positions", None)
    true: list[Completion] = []
    for completion in sampled:
        prompt = completion.prompt
        room = LONGEST_TRUTH if positions is None else max(0, positions - len(completion.prompt_ids))
        # After a chat template the answer begins a line of its own.
        before = "" if prompt.messages else prompt.text
        tokens = policy.encode(continuation(before, prompt.reference or ""))[: min(LONGEST_TRUTH, room)]
        if tokens:
            blank = tuple(0.0 for _ in tokens)
            true.append(Completion(prompt, completion.prompt_ids, tokens, prompt.reference or "", blank, "length"))
    likelihoods = negative_log_likelihoods(true, policy)
    return [
        Truth(completion.prompt.id, nll, len(completion.token_ids))
        for completion, nll in zip(true, likelihoods, strict=True)
    ]
