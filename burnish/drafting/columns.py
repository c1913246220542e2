"""Guesses of what the columns of a user's data are: the prompt, the true answer, and the verb that learns from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from burnish.data.fields import field as get_field
from burnish.data.fields import field_paths, has_field
from burnish.data.origin import Origin
from burnish.errors import InputError
from burnish.registry import nearest

PROMPTS = (
    "prompt", "question", "problem", "instruction", "query", "messages", "conversations", "conversation", "input",
    "sentence", "text", "问题", "题目", "提示",
)  # fmt: skip
"""Fields that are taken for the prompt, the likeliest first; case does not matter."""
ANSWERS = (
    "reward_model.ground_truth", "reference", "ground_truth", "expected_answer", "final_answer", "correct_answer",
    "answers.text", "answer.value", "answer", "answers", "answerkey", "tests", "test_list", "input_output", "target",
    "gold", "solution", "response", "output", "completion", "translation", "summary", "label", "答案", "回答",
)  # fmt: skip
"""Fields that are taken for the reference, the likeliest first."""
PREFERRED = (("chosen", "rejected"), ("preferred", "rejected"), ("chosen_response", "rejected_response"))
CONTEXTS = ("context", "passage", "document", "article")
OPTIONS = ("choices.text", "choices", "options")
LOOKED_AT = 200
"""Rows whose columns are compared."""
LETTERS = "ABCDEFGHIJ"


def first_rows(
    options: Mapping[str, Any], verb: str = "", prompt: str = "", reference: str = ""
) -> tuple[list[Mapping[str, Any]], str]:
    """Return the first rows of some data, those of the commonest form in front, and a note if forms differ.

    The form of a row is its verb, prompt and reference, as named or as guessed. Raises InputError if no row can be
    read.
    """
    known = Origin.__dataclass_fields__
    if unknown := [key for key in options if key not in known]:
        raise InputError(f"--set {unknown[0]}{nearest(unknown[0], known)}: known: {', '.join(known)}")
    if wrong := [key for key, value in options.items() if not isinstance(value, str)]:
        raise InputError(f"--set {wrong[0]}={options[wrong[0]]}: must be text, as in --set '{wrong[0]}=\"...\"'")
    raw = list(islice(Origin(**options).rows(), LOOKED_AT))
    read = [(row.position, row.values) for row in raw if row.values is not None]
    if not read:
        problem = f"{raw[0].position}: {raw[0].reason}" if raw else "it has no rows"
        raise InputError(f"{options.get('path') or options.get('dataset')}: no row can be read: {problem}")
    forms = [_form(row, verb, prompt, reference) for _, row in read]
    ((commonest, _),) = Counter(forms).most_common(1)
    order = sorted(range(len(read)), key=lambda index: forms[index] != commonest)
    note = ""
    if other := [index for index in order if forms[index] != commonest]:
        note = (
            f"{len(other)} of the first {len(read)} rows differ from the others, the first at {read[other[0]][0]}: "
            f"{_form_text(forms[other[0]])}, not {_form_text(commonest)}"
        )
    return [read[index][1] for index in order], note


def _form(row: Mapping[str, Any], verb: str, prompt: str, reference: str) -> tuple[str, str, str]:
    """Return the verb that a row is for, and its fields of the prompt and the reference; "" for one that it lacks."""
    verb = verb or ("train" if prompt or reference else guess_verb([row]))
    named = [name if has_field(row, name) else "" for name in (prompt, reference)]
    answer = named[1] if reference else _named(row, [name for name in ANSWERS if name != prompt])
    return verb, named[0] if prompt else _named(row, [name for name in PROMPTS if name != answer]), answer


def _form_text(form: tuple[str, str, str]) -> str:
    verb, *fields = form
    prompt, answer = (
        f"'{one}'" if one else f"no {what}" for one, what in zip(fields, ("prompt", "answer"), strict=True)
    )
    return f"{prompt} and {answer} for `burnish {verb}`"


def _named(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the first of some fields that a row has, as the row spells it; "" if it has none."""
    spelling = {str(name).strip().lower(): str(name) for name in row}
    for name in names:
        if has_field(row, name):
            return name
        if name in spelling:
            return spelling[name]
    return ""


def _preferences(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PREFERRED if all(has_field(row, name) for name in pair)), None)


def guess_verb(rows: Sequence[Mapping[str, Any]]) -> str:
    row = rows[0]
    if _preferences(row) or ("label" in row and "completion" in row and "prompt" in row):
        return "prefer"
    prompt = _named(row, PROMPTS)
    if "completion" in row and prompt and not has_field(row, ANSWERS[0]):
        return "sft"
    inputs = [row.get("input") for row in rows if "instruction" in row]
    if any(inputs) and not all(inputs):  # a prompt's template cannot have an empty field
        return "sft"
    answered = prompt in ("messages", "conversations", "conversation") and not _named(row, ANSWERS)
    if answered and _speaker(get_field(row, prompt)) in ("assistant", "gpt"):
        return "sft"
    return "sft" if prompt == "text" and not _named(row, ANSWERS) else "train"


def _speaker(messages: Any) -> str:
    """Return the role of a conversation's last message."""
    last = messages[-1] if isinstance(messages, list) and messages else {}
    return str(last.get("role", last.get("from", ""))) if isinstance(last, Mapping) else ""


def _refuse(rows: Sequence[Mapping[str, Any]], what: str) -> InputError:
    listed = list(islice(field_paths(rows[0]), 20))
    return InputError(
        f"no column looks like the {what}; the columns are {', '.join(listed)}: name them with --prompt and --reference"
    )


def prompt_fields(rows: Sequence[Mapping[str, Any]], prompt: str, reference: str) -> dict[str, Any]:
    """Return the options of the task ``data`` that name its fields. Raises InputError without a prompt."""
    row = rows[0]
    answer = reference or _named(row, [name for name in ANSWERS if name != prompt])
    asked = prompt or _named(row, [name for name in PROMPTS if name != answer])
    if not asked:
        raise _refuse(rows, "prompt")
    if answer and (options := _named(row, OPTIONS)) and _numbers_options(rows, answer, options):
        raise InputError(
            f"'{answer}' numbers the options of '{options}', which no reward reads: write the letter (A, B, ...) instead"
        )
    pieces = _template(rows, asked) if isinstance(get_field(row, asked), str) else []
    fields: dict[str, Any] = {"template": "\n".join(pieces)} if pieces else {"prompt": asked}
    return fields | ({"reference": answer} if answer else {})


def guess_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the task ``data`` that name the fields of some data; none if they cannot be guessed."""
    with suppress(InputError):
        rows, _ = first_rows({key: value for key, value in options.items() if key in Origin.__dataclass_fields__})
        if guess_verb(rows) == "train":
            return prompt_fields(rows, "", "")
    return {}


def _template(rows: Sequence[Mapping[str, Any]], prompt: str) -> list[str]:
    """Return the lines of a template where the prompt needs other columns: a context, an input, or options."""
    row = rows[0]
    lines = []
    if (context := _named(row, CONTEXTS)) and context != prompt and _is_text(rows, context):
        lines += [f"{{{context}}}", ""]
    lines.append(f"{{{prompt}}}")
    if prompt == "instruction" and "input" in row and _is_text(rows, "input"):
        lines += ["", "{input}"]
    letters = [letter for letter in LETTERS if letter in row and _is_text(rows, letter)]
    if len(letters) > 1:
        lines += [f"{letter}. {{{letter}}}" for letter in letters]
    elif name := _named(row, OPTIONS):
        lines += _option_lines(rows, name)
    return lines if len(lines) > 1 and not set(prompt) & set("[]{}:!") else []


def _option_lines(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Return the lines of a template for options in a list, or by letter; none if the rows' options differ in number."""
    values: list[Any] = [get_field(row, name) if has_field(row, name) else None for row in rows]
    if all(isinstance(value, dict) for value in values):
        letters = [letter for letter in LETTERS if letter in values[0]]
        same = all([*value] == letters for value in values)
        return [f"{letter}. {{{name}.{letter}}}" for letter in letters] if same and len(letters) > 1 else []
    texts = all(isinstance(value, list) and all(isinstance(one, str) for one in value) for value in values)
    if not texts or len({len(value) for value in values}) > 1 or not 2 <= len(values[0]) <= len(LETTERS):
        return []
    indices = range(len(values[0]))
    names = name.replace("text", "label")
    labels = [get_field(row, names) if names != name and has_field(row, names) else None for row in rows]
    if all(one in (None, [*LETTERS[: len(indices)]]) for one in labels):
        return [f"{LETTERS[index]}. {{{name}.{index}}}" for index in indices]
    return [f"{{{names}.{index}}}. {{{name}.{index}}}" for index in indices]


def _numbers_options(rows: Sequence[Mapping[str, Any]], answer: str, options: str) -> bool:
    """Return whether answers are indices of a list of options, as in MMLU."""
    known = [row for row in rows if has_field(row, answer) and has_field(row, options)]
    pairs = [(get_field(row, answer), get_field(row, options)) for row in known]
    return bool(pairs) and all(
        type(index) is int and isinstance(one, list) and 0 <= index < len(one) for index, one in pairs
    )


def _is_text(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [row.get(name) for row in rows]
    return all(isinstance(value, str) and value.strip() for value in values)


def row_columns(rows: Sequence[Mapping[str, Any]], verb: str, prompt: str, reference: str) -> dict[str, str]:
    """Return the format's columns that the file names otherwise."""
    row = rows[0]
    columns: dict[str, str] = {}
    asked = prompt or _named(row, PROMPTS)
    if verb in ("prefer", "reward-model") and not ("completion" in row and "label" in row):
        pair = _preferences(row)
        if pair is None:
            raise _refuse(rows, "preferred and the rejected answer")
        columns = dict(zip(("chosen", "rejected"), pair, strict=True))
        known = asked in ("prompt", "instruction", "messages", "conversations", "")
        columns |= {} if known else {"prompt": asked}
    elif verb == "sft" and _speaker(get_field(row, asked) if asked else None) not in ("assistant", "gpt"):
        answer = reference or _named(row, [name for name in ("completion", "output", *ANSWERS) if name != asked])
        columns = {"prompt": asked, "completion": answer} if asked and answer else {}
    return {name: column for name, column in columns.items() if name != column}
