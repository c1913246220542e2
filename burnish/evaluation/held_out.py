"""Held-out evaluation: measure a policy on prompts it was not trained on, and compare two measurements.

``measure`` samples, scores and records every number per completion. ``summary`` and ``compare`` compute metrics from
the record without a model, so that a saved measurement can be compared again later.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.errors import InputError
from burnish.evaluation.finite_samples import refuse_broken_samples
from burnish.evaluation.measurement import Measurement, Sample, Truth
from burnish.evaluation.metrics import held_out_metrics
from burnish.rewards.library.fluency import negative_log_likelihoods
from burnish.rewards.votes import AnswerReading
from burnish.system.clock import Clock
from burnish.text import WITHOUT_SPACES, Pattern
from burnish.types import Completion, Group, Prompt, SamplingParams, Scores

if TYPE_CHECKING:
    from burnish.protocols import HasReference, Observer, Sampler, Scorer

PROMPTS_AT_ONCE = 32
"""Prompts that a measurement samples at once."""
LONGEST_TRUTH = 512
"""Largest number of reference tokens that truth_perplexity reads: a whole article would not fit in one pass."""
# Han, kana, Thai, Lao, Burmese, Khmer and full-width punctuation are written without spaces.
_NO_SPACE_BESIDE = Pattern(rf"[{WITHOUT_SPACES}\p{{Thai}}\p{{Lao}}\p{{Myanmar}}\p{{Khmer}}\u3000-\u303f\uff00-\uffef]")
_NO_SPACE_BEFORE = re.compile(r"[\s,.;:!?%)\]}’”…]")
_NO_SPACE_AFTER = re.compile(r"[\s(\[{‘“]")


def continuation(prompt: str, reference: str) -> str:
    """Return the reference as a continuation of the prompt, with a space before it where the two would run together.

    After a complete word a language model expects " word", not "word". No space is added next to an existing one,
    before closing or after opening punctuation, or next to a script that is written without spaces.
    """
    if not prompt or not reference:
        return reference
    last, first = prompt[-1], reference[0]
    spaceless = _NO_SPACE_BESIDE.match(last) or _NO_SPACE_BESIDE.match(first)
    joined = spaceless or _NO_SPACE_AFTER.match(last) or _NO_SPACE_BEFORE.match(first)
    return reference if joined else " " + reference


def measure(
    policy: HasReference, sampler: Sampler, scorer: Scorer, prompts: Sequence[Prompt], *, sampling: SamplingParams,
    samples_per_prompt: int, seed: int | Sequence[int], metrics: Scorer | None = None,
    better: Mapping[str, str] | None = None, observer: Observer | None = None, clock: Clock | None = None,
    prompts_per_batch: int = PROMPTS_AT_ONCE, policy_version: int = 0, correct: str | None = None,
    attempts: Sequence[int] = (), majorities: Sequence[int] = (), reading: AnswerReading | None = None,
) -> Measurement:  # fmt: skip
    """Sample and score the held-out prompts.

    Args:
        policy: the measured policy; its ``reference`` gives the likelihoods behind ``perplexity``.
        scorer: the run's reward.
        prompts: P prompts with distinct ids.
        samples_per_prompt: G.
        seed: of the sampler; use the same one before and after training, so that both share their random numbers.
        metrics: scorer of metrics that are not trained on. Each of its parts becomes a metric; its total is not used.
        better: direction of each such metric: "higher" (the default), "lower" or "neither".
        prompts_per_batch: prompts sampled at once; bounds the memory.
        clock: gets the seconds of "generate", "score", "likelihood" and "truths".
        correct: the part or metric that is 1 for a right answer, with the k of its pass@k (``attempts``) and maj@k.

    Raises:
        InputError: there are no prompts, two share an id, or there are fewer than two completions in total.
        BurnishError: a reward failed.
    """
    _check_prompts(prompts, samples_per_prompt)
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    samples: list[Sample] = []
    truths: list[Truth] = []
    weights: Mapping[str, float] = {}
    directions: dict[str, str] = {}
    lap = (clock or Clock()).lap
    for start in range(0, len(prompts), prompts_per_batch):
        with lap("generate"):
            groups = sampler.sample(
                prompts[start : start + prompts_per_batch], samples_per_prompt=samples_per_prompt, sampling=sampling,
                seed=seeds, policy_version=policy_version,
            )  # fmt: skip
        completions = [completion for group in groups for completion in group.completions]
        refuse_broken_samples(completions, "held-out measurement")
        with lap("score"):
            scores = scorer.score(completions)
        weights = scores.weights
        with lap("likelihood"):
            likelihoods = negative_log_likelihoods(completions, policy.reference)
        further = metrics.score(completions).parts if metrics else {}
        directions = {name: (better or {}).get(name, "higher") for name in further}
        samples.extend(_samples(groups, scores, likelihoods, further, reading))
        with lap("truths"):
            truths.extend(_truths(policy, [group.completions[0] for group in groups]))
        if observer is not None:
            observer.progress("evaluating", min(start + prompts_per_batch, len(prompts)), len(prompts))
    return Measurement(
        tuple(samples), tuple(truths), dict(weights), directions, correct, tuple(attempts), tuple(majorities)
    )


def summary(measurement: Measurement, *, bleu_tokenize: str = "auto") -> dict[str, float]:
    """Return the metrics of one measurement, by the names that ``compare`` uses.

    - reward, reward/<part>, metric/<name>: means.
    - perplexity: of the samples under the reference policy; truth_perplexity: of the true continuations under the
      measured policy. Omitted if some token has probability 0.
    - bleu, chrf: corpus level, 0 to 100.
    - distinct_1, distinct_2: corpus level, of words, 0 to 1; they fall as texts get longer.
    - length: mean number of tokens.
    - pass@k, maj@k, avg@n: with ``correct`` and several prompts: the share of prompts that one of k samples solves, for
      which the commonest answer of k samples is right, and the share of right samples, n per prompt.

    bleu, chrf and truth_perplexity are omitted if no prompt has a reference. The metrics of a further held-out set are
    ``set/<set>/<metric>``.
    """
    return {metric.name: metric.value(metric.data) for metric in held_out_metrics(measurement, bleu_tokenize)}


def compare(
    before: Measurement, after: Measurement, *, resamples: int = 1000, seed: int = 0, bleu_tokenize: str = "auto"
) -> dict[str, dict[str, Any]]:
    """Compare every metric of ``summary`` before and after, with the interval and p-value of the difference.

    The units are prompts, each with all its samples. With a single prompt they are its samples, paired by index, and
    the result holds for that prompt alone. Omitted, besides what ``summary`` omits: metrics with fewer than two units,
    parts that only one measurement has, and the reward if the two weigh their parts differently.

    Returns metric -> ``{before, after, difference, interval: [low, high], p_value, n, better}``, in a fixed order;
    ``better`` is "higher", "lower" or None. Raises InputError if the two do not measure the same prompts with the same
    number of samples.
    """
    after = _aligned(before, after)
    totals = {"reward", *(f"set/{name}/reward" for name in before.sets)}
    second = {metric.name: metric for metric in held_out_metrics(after, bleu_tokenize)}
    table: dict[str, dict[str, Any]] = {}
    for metric in held_out_metrics(before, bleu_tokenize):
        if metric.name not in second or len(metric.data) < 2:
            continue
        if metric.name in totals and before.weights != after.weights:
            continue
        result = metric.compare(metric.data, second[metric.name].data, resamples=resamples, seed=seed)
        table[metric.name] = {**asdict(result), "interval": list(result.interval), "better": metric.better}
    return table


def _aligned(before: Measurement, after: Measurement) -> Measurement:
    """Return ``after`` in the order of ``before``. Raises InputError if they do not measure the same samples."""

    def by_key(samples: Sequence[Sample]) -> dict[Hashable, Sample]:
        return {(sample.prompt_id, sample.index, sample.prompt, sample.reference): sample for sample in samples}

    first, second = by_key(before.samples), by_key(after.samples)
    if first.keys() != second.keys():
        odd = first.keys() ^ second.keys()
        ids = sorted({sample.prompt_id for key, sample in (first | second).items() if key in odd})
        raise InputError(
            f"the two measurements differ in prompt '{ids[0]}' (and {len(ids) - 1} more), its text, reference or "
            "samples: evaluate both on the same task with the same number of samples per prompt"
        )
    truths = {truth.prompt_id: truth for truth in after.truths}
    return replace(
        after,
        samples=tuple(second[key] for key in first),
        truths=tuple(truths[truth.prompt_id] for truth in before.truths if truth.prompt_id in truths),
        sets={name: _aligned(one, after.sets[name]) for name, one in before.sets.items() if name in after.sets},
    )


def _check_prompts(prompts: Sequence[Prompt], samples_per_prompt: int) -> None:
    if not prompts:
        raise InputError("there are no held-out prompts: give the task some, or remove [evaluation]")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise InputError(f"two held-out prompts have the id '{prompt.id}': ids must differ")
        seen.add(prompt.id)
    if len(prompts) * samples_per_prompt < 2:
        raise InputError(
            "one held-out completion is too few to compare: raise evaluation.prompts or evaluation.samples_per_prompt"
        )


def _samples(
    groups: Sequence[Group], scores: Scores, likelihoods: Sequence[float], metrics: Mapping[str, np.ndarray],
    reading: AnswerReading | None,
) -> Iterator[Sample]:  # fmt: skip
    # A sample is identified by its index in its group: before and after are paired by it.
    indexed = [pair for group in groups for pair in enumerate(group.completions)]
    texts = [[completion.text for completion in group.completions] for group in groups]
    votes = [vote for each in texts for vote in (reading.votes(each) if reading else [None] * len(each))]
    for row, (index, completion) in enumerate(indexed):
        prompt = completion.prompt
        yield Sample(
            prompt_id=prompt.id,
            prompt=prompt.text,
            reference=prompt.reference,
            index=index,
            text=completion.text,
            reward=float(scores.total[row]),
            parts=_applying(scores.parts, row),
            tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            nll=likelihoods[row],
            metrics=_applying(metrics, row),
            alternatives=prompt.alternatives,
            vote=votes[row],
        )


def _applying(parts: Mapping[str, np.ndarray], row: int) -> dict[str, float]:
    """Return a sample's parts, without those that do not apply to it."""
    return {name: float(values[row]) for name, values in parts.items() if not np.isnan(values[row])}


def _truths(policy: HasReference, sampled: Sequence[Completion]) -> list[Truth]:
    """Score the true continuations after the prompts as the sampler encoded them, within the policy's positions."""
    positions: int | None = getattr(policy, "max_positions", None)
    true: list[Completion] = []
    for completion in sampled:
        prompt = completion.prompt
        room = LONGEST_TRUTH if positions is None else max(0, positions - len(completion.prompt_ids))
        # After a chat template the answer starts on a new line.
        before = "" if prompt.messages else prompt.text
        tokens = policy.encode(continuation(before, prompt.reference or ""))[: min(LONGEST_TRUTH, room)]
        if tokens:
            blank = (0.0,) * len(tokens)
            true.append(Completion(prompt, completion.prompt_ids, tokens, prompt.reference or "", blank, "length"))
    likelihoods = negative_log_likelihoods(true, policy)
    return [
        Truth(completion.prompt.id, nll, len(completion.token_ids))
        for completion, nll in zip(true, likelihoods, strict=True)
    ]
