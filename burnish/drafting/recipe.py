"""Drafts of recipes from the columns of a user's data: ``burnish init``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from burnish.data.fields import field as get_field
from burnish.data.files import RawRow
from burnish.data.rows import (
    BrokenRow,
    Conversation,
    ConversationPair,
    LabelledCompletion,
    LabelledConversation,
    PreferencePair,
    PromptCompletion,
    TrainingRow,
)  # fmt: skip
from burnish.drafting.columns import CONTEXTS, first_rows, guess_verb, prompt_fields, row_columns
from burnish.drafting.rewards import RewardGuess, estimated_tokens, guess_reward, share_tokens
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.supervised.data_rows import DataRows
from burnish.tasks.data import DataTask
from burnish.types import Prompt

VERBS = ("train", "sft", "prefer", "reward-model")
HELD_OUT_WANTED = 50
"""Held-out prompts that give an interval narrow enough to show an ordinary gain."""
SAMPLES, STEP_TOKENS = 8, 1024
"""Samples per prompt, and the most tokens of a step unless answers are long: seconds on a laptop."""
LONGEST_COMMENT = 300
MOST_BROKEN = 0.999
"""Share of the rows that may be unusable in a draft."""


@dataclass
class Table:
    """A table of the recipe: its header, and key, value and comment of each line."""

    header: str
    lines: list[tuple[str, Any, str]] = field(default_factory=list)

    def text(self) -> str:
        pairs = [(_pair(key, value), _comment(comment)) for key, value, comment in self.lines]
        width = min(48, max(len(pair) for pair, comment in pairs))
        written = [f"{pair:{width}}  # {comment}" if comment else pair for pair, comment in pairs]
        return "\n".join([*([self.header] if self.header else []), *written]) + "\n"


def _comment(text: str) -> str:
    """Return text of the data so that it stays a comment: a line break would end it and begin a line of the recipe."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST_COMMENT])


def _pair(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{key} = {{ {', '.join(_pair(*item) for item in value.items())} }}"
    return tomli_w.dumps({key: value}).strip()


def draft_recipe(
    data: str, *, kind: str = "", prompt: str = "", reference: str = "", model: str = "smollm2-135m",
    settings: Mapping[str, Any] | None = None,
) -> tuple[str, str, str]:  # fmt: skip
    """Return the verb and the text of a recipe for a file, a pattern of files, or ``datasets/OWNER/NAME`` of the hub.

    Third, a note if the rows differ in form; the recipe is for the commonest one.

    Args:
        kind: the verb, one of ``VERBS``; if empty, the columns decide.
        prompt, reference: the fields of the prompt and of the true answer; if empty, they are guessed.
        settings: options of the data, such as ``delimiter``.

    Raises:
        InputError: the data cannot be read, or a field cannot be guessed.
    """
    if kind and kind not in VERBS:
        raise InputError(f"--kind {kind}{nearest(kind, VERBS)}: write one of {', '.join(VERBS)}")
    hub = data.startswith("datasets/") and not Path(data).exists()
    options = {"dataset" if hub else "path": data.removeprefix("datasets/") if hub else data, **(settings or {})}
    rows, note = first_rows(options, kind, prompt, reference)
    for name in filter(None, (prompt, reference)):
        try:
            get_field(rows[0], name)
        except ValueError as error:
            raise InputError(f"{data}: {error}") from error
    verb = kind or ("train" if prompt or reference else guess_verb(rows))
    top = f"# Drafted by `burnish init {_comment(data)}`. A comment says why a value was chosen: check what it says.\n"
    top += f"# {_comment(note)}.\n" if note else ""
    write = _draft_training if verb == "train" else _draft_supervised
    sections = write(rows, options, verb, prompt, reference)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data.rstrip("/*")).name.partition(".")[0]).strip("-._") or "mine"
    first = [("kind", verb, "")] if verb != "train" else []
    sections[0].lines[:0] = [*first, ("name", name, "run folders are named after it")]
    policy = Table("[policy]")
    policy.lines.append(("model", model, "or a model folder, a run folder, a hub id (burnish list models)"))
    policy.lines.append(("lora", {"rank": 16}, "trains a small adapter; leave out to train all weights"))
    sections.insert(1, policy)
    text = top + "\n".join(section.text() for section in sections)
    if not text.isascii() and text != text.encode("utf-8", "replace").decode():
        raise InputError(f"the name of a file or a column is not UTF-8 text: {data!r}; rename it")
    return verb, text, note


def _draft_training(
    rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any], verb: str, prompt: str, reference: str
) -> list[Table]:
    fields = prompt_fields(rows, prompt, reference)
    pieces, answer = "template" in fields, "reference" in fields
    task = DataTask(**options, **fields, max_broken=MOST_BROKEN)
    examples = task.examples(offline=False, observer=None)
    prompts = list({one.digest: one.prompt for one in examples}.values())
    guess = guess_reward(prompts)
    if not guess.use:
        raise InputError(guess.why)
    source = Table("[task]", [("use", "data", "")])
    source.lines += [(key, value, "") for key, value in options.items()]
    why = "the fields in braces make the prompt" if pieces else "the field of the prompt, which is a user's message"
    for name in ("input", *CONTEXTS):
        if any(values := [one.get(name) for one in rows]) and not all(values) and name not in fields.values():
            why += f"; '{name}' is empty in some rows, so it is left out"
    source.lines += [(key, fields[key], why) for key in ("template", "prompt") if key in fields]
    if answer:
        source.lines.append(("reference", fields["reference"], f"the true answer, such as {_shown(prompts)}"))
    source.lines += _held_out(len(prompts), "prompts") if "held_out" not in options else []
    if task.broken:
        source.lines.append(_max_broken(len(examples), task.broken))
    return _loop(guess, prompts, source)


def _loop(guess: RewardGuess, prompts: Sequence[Prompt], source: Table) -> list[Table]:
    each = max(2, min(8, STEP_TOKENS // (SAMPLES * guess.max_new_tokens), len(prompts) // 2 or 1))
    steps = max(40, min(100, len(prompts) // each))
    reward = Table("[[reward]]", [("use", guess.use, guess.why)])
    reward.lines += [(key, value, why) for key, value, why in guess.options]
    sampling = Table("[sampling]")
    sampling.lines = [
        ("prompts_per_step", each, "more: steadier steps, each of which takes longer"),
        ("samples_per_prompt", SAMPLES, "answers to one prompt, which are compared with each other"),
        ("max_new_tokens", guess.max_new_tokens, guess.room),
    ]
    evaluation = Table("[evaluation]", [("samples_per_prompt", 4, "more: narrower intervals")])
    first = Table("", [("steps", steps, f"{each} of {len(prompts)} prompts per step; more if the reward still rises")])
    return [first, source, reward, sampling, evaluation]


def _shown(prompts: Sequence[Prompt]) -> str:
    text = " ".join((prompts[0].reference or "").split())
    return repr(text if len(text) <= 30 else f"{text[:29]}…")


def _held_out(count: int, what: str) -> list[tuple[str, Any, str]]:
    percent = 50 if count < 20 else max(10, min(30, round(100 * HELD_OUT_WANTED / count)))
    why = f"about {round(count * percent / 100)} of {count} {what}, which training never sees, measure the result"
    return [("held_out_percent", percent, why)]


def _max_broken(usable: int, broken: Sequence[RawRow] | Sequence[BrokenRow]) -> tuple[str, Any, str]:
    share = round(len(broken) / (usable + len(broken)) + 0.005, 2)
    why = f"unusable rows: {len(broken)}; the first, {broken[0].position}: {broken[0].reason}"
    return "max_broken", min(share, MOST_BROKEN), why


def _draft_supervised(
    rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any], verb: str, prompt: str, reference: str
) -> list[Table]:
    source = {("file_format" if key == "format" else key): value for key, value in options.items()}
    columns = row_columns(rows, verb, prompt, reference)
    read = DataRows(**source, columns=columns).rows()
    if not read.rows:
        broken = read.broken[0]
        raise InputError(
            f"no row can be used by `burnish {verb}`, the first is {broken.position}: {broken.reason}; "
            "name the columns with --prompt and --reference"
        )
    kinds = {type(row) for row in read.rows}
    paired = kinds <= {PreferencePair, ConversationPair}
    labelled = kinds <= {LabelledCompletion, LabelledConversation}
    if (verb == "sft") is (paired or labelled) or (verb == "reward-model" and not paired):
        raise InputError(
            f"`burnish {verb}` needs {'answers' if verb == 'sft' else 'pairs of answers'}, and the rows "
            f"are {'pairs or labelled answers' if paired or labelled else 'single answers'}: choose another --kind"
        )
    data = Table("[data]", [("use", "data", ""), *((key, value, "") for key, value in source.items())])
    if columns:
        data.lines.append(("columns", columns, "the format's name of a column = the file's"))
    if any(isinstance(row, PromptCompletion | PreferencePair | LabelledCompletion) and row.prompt for row in read.rows):
        data.lines.append(("chat", True, "plain text becomes a user's message and the assistant's answer"))
    data.lines += _held_out(len({row.unit for row in read.rows}), "prompts") if "held_out" not in options else []
    if read.broken:
        data.lines.append(_max_broken(len(read.rows), read.broken))
    each = max(2, min(16, len(read.rows) // 4))
    longest = share_tokens([_tokens(row) for row in read.rows], 0.98)
    batch = Table("[batch]", [("examples_per_step", each, "rows per update")])
    limit = max(64, min(1024, -(-longest // 64) * 64 + 64))
    batch.lines.append(("max_tokens", limit, f"98% of the rows have at most {longest} tokens by a rough count"))
    steps = max(20, min(200, 2 * len(read.rows) // each))
    first = Table("", [("steps", steps, f"{each} of {len(read.rows)} rows per step")])
    chosen = {"prefer": ("[preference]", "kto" if labelled else "dpo")}
    why = "rows with labels" if labelled else "pairs; or ipo, simpo, orpo, cpo"
    more = [Table(chosen[verb][0], [("use", chosen[verb][1], why)])] if verb in chosen else []
    return [first, data, *more, batch]


def _tokens(row: TrainingRow) -> int:
    """Return roughly how many tokens a row has."""
    match row:
        case Conversation():
            texts = [message.content for message in row.messages]
        case ConversationPair():
            answers = max((row.chosen, row.rejected), key=lambda one: sum(len(message.content) for message in one))
            texts = [message.content for message in (*row.prompt, *answers)]
        case LabelledConversation():
            texts = [message.content for message in (*row.prompt, *row.completion)]
        case PreferencePair():
            texts = [row.prompt, max(row.chosen, row.rejected, key=len)]
        case _:
            texts = [row.prompt, row.completion]
    return sum(map(estimated_tokens, texts)) + 8 * len(texts)
