"""A user's data as a model will see it: the first rows, counts, lengths in tokens, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from burnish.data.rows import Rows
from burnish.errors import InputError
from burnish.policies.causal_lm import CausalModel
from burnish.supervised.data_rows import DataRows
from burnish.supervised.encoding import Encoded, Encoder
from burnish.supervised.kto import KTO
from burnish.supervised.objective import Example
from burnish.supervised.sft import FineTuning
from burnish.tasks.data import DataTask
from burnish.types import Prompt

ROW_VERBS: Mapping[str, str] = {
    "Conversation": "sft", "PromptCompletion": "sft", "PreferencePair": "prefer, reward-model",
    "ConversationPair": "prefer, reward-model", "LabelledCompletion": "prefer (kto)",
    "LabelledConversation": "prefer (kto)",
}  # fmt: skip
"""Kind of row -> the verbs that learn from it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as the model will see it: its position, the text of its tokens, and the true answers."""

    position: str
    text: str
    answers: tuple[str, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What one use of the data gives.

    Attributes:
        use: the verbs that it is for.
        counts: name -> number, such as "training prompts".
        lengths: tokens of each usable row.
        left_out: position and reason of each row that cannot be used.
        split: what decided which rows are held out; "" if the data did.
    """

    use: str
    counts: Mapping[str, int]
    lengths: tuple[int, ...]
    first: tuple[Shown, ...]
    left_out: tuple[tuple[str, str], ...]
    split: str = ""

    def to_json(self) -> dict[str, Any]:
        left_out = [{"position": position, "reason": reason} for position, reason in self.left_out]
        first = [asdict(one) for one in self.first]
        sizes = spread(self.lengths)
        return {"use": self.use, "counts": self.counts, "tokens": sizes, "first": first, "left_out": left_out}

    def lines(self) -> list[str]:
        """Return the reading as lines of text."""
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        sizes = ", ".join(f"{name} {number}" for name, number in spread(self.lengths).items())
        split = f" ({self.split})" if self.split else ""
        lines = [f"{self.use}: {counts}{split}", *([f"  tokens: {sizes}"] if sizes else [])]
        lines += [f"  left out, {position}: {reason}" for position, reason in self.left_out[:5]]
        if len(self.left_out) > 5:
            lines.append(f"  left out: {len(self.left_out) - 5} more")
        for one in self.first:
            lines.append(f"  {one.position} ({one.tokens} tokens):")
            lines += [f"  | {line}" for line in one.text.split("\n")]
            lines += [f"  = {answer}" for answer in one.answers]
        return lines


def spread(lengths: Sequence[int]) -> dict[str, int]:
    """Return the smallest, the middle, the 95th percentile and the largest of some lengths."""
    if not lengths:
        return {}
    ordered = sorted(lengths)
    shares = {"min": 0.0, "median": 0.5, "95%": 0.95, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in shares.items()}


def read_as_prompts(options: Mapping[str, Any], model: CausalModel, rows: int, *, offline: bool) -> Reading:
    """Return what ``burnish train`` reads. Raises InputError if the data cannot be read at all."""
    task = DataTask(**{"max_broken": 0.999999, **options})
    task.prepare(offline=offline)
    left_out = [(row.position, row.reason) for row in task.broken]
    shown: list[Shown] = []
    both = [*task.train(), *task.evaluation()]
    references = 0
    for prompt in both:
        tokens = _tokens(model, prompt, left_out)
        references += prompt.reference is not None
        if tokens is not None:
            shown.append(Shown(prompt.position, _decoded(model, tokens), prompt.references, len(tokens)))
    counts = {
        "training prompts": len(task.train()),
        "held-out prompts": len(task.evaluation()),
        "references": references,
    }
    lengths = tuple(one.tokens for one in shown)
    split = "" if task.origin.held_out else f"held_out_percent = {task.held_out_percent}; a recipe may set another"
    return Reading("train", counts, lengths, tuple(shown[:rows]), tuple(left_out), split)


def _tokens(model: CausalModel, prompt: Prompt, left_out: list[tuple[str, str]]) -> tuple[int, ...] | None:
    try:
        return model.encode_prompt(prompt)
    except InputError as error:
        left_out.append((prompt.position, str(error)))
        return None


def read_as_rows(rows: Rows, model: CausalModel, count: int, max_tokens: int) -> Reading | None:
    """Return what the supervised verbs read; None if no row has a format of theirs."""
    if not rows.rows:
        return None
    max_tokens = min(max_tokens, model.max_positions or max_tokens)
    encoder = Encoder(model, max_tokens)
    left_out = [(row.position, row.reason) for row in rows.broken]
    shown: list[Shown] = []
    counts: dict[str, int] = {}
    cut = 0
    for row, position in zip(rows.rows, rows.positions or [""] * len(rows.rows), strict=True):
        kind = type(row).__name__
        counts[f"rows for {ROW_VERBS[kind]}"] = counts.get(f"rows for {ROW_VERBS[kind]}", 0) + 1
        learn: Callable[..., list[Example]] = (FineTuning() if ROW_VERBS[kind] == "sft" else KTO(0.1)).examples
        try:
            texts = [text for example in learn(encoder, row) for text in example.texts]
        except (ValueError, InputError) as error:
            left_out.append((position, str(error)))
            continue
        cut += any(text.cut for text in texts)
        shown += [_shown(model, text, position) for text in texts]
    counts |= {"repeated": rows.repeats} if rows.repeats else {}
    counts |= {f"cut at {max_tokens} tokens": cut} if cut else {}
    lengths = tuple(one.tokens for one in shown)
    return Reading("sft, prefer, reward-model", counts, lengths, tuple(shown[:count]), tuple(left_out))


def _decoded(model: CausalModel, tokens: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(tokens)))


def _shown(model: CausalModel, text: Encoded, position: str) -> Shown:
    prompt = _decoded(model, text.prompt_ids)
    learnt = [token for token, flag in zip(text.token_ids, text.learnt, strict=True) if flag]
    return Shown(position, prompt, (_decoded(model, learnt),), text.size)


def check_data(
    options: Mapping[str, Any], model: CausalModel, *, rows: int = 3, max_tokens: int = 512, offline: bool = False
) -> list[Reading]:
    """Return what each use of the data gives: as prompts, and as rows that are learnt.

    Args:
        options: options of the task ``data``; the rows use those that they share.
        rows: how many first rows to show.

    Raises:
        InputError: neither use can read the data.
    """
    readings: list[Reading] = []
    reason: InputError | None = None
    try:
        readings.append(read_as_prompts(options, model, rows, offline=offline))
    except InputError as error:
        reason = error
    shared = {key: value for key, value in options.items() if key not in _PROMPT_OPTIONS}
    if "format" in shared:
        shared["file_format"] = shared.pop("format")
    learnt = read_as_rows(DataRows(**shared).rows(offline=offline), model, rows, max_tokens)
    if learnt is not None:
        readings.append(learnt)
    if not readings:
        assert reason is not None
        raise reason
    return readings


_PROMPT_OPTIONS = (
    "prompt", "template", "messages", "reference", "group", "metadata", "chat", "held_out_percent", "max_broken",
    "max_characters",
)  # fmt: skip
