"""Chat templates from registry packages, each held against what sampling would have to produce.

    .venv/bin/python bench/templates.py [--only NAME]      # or: make templates

The templates come from the source distribution of llama-cpp-python (llama.cpp's ``models/templates``) and from the wheel
of trl (``trl/chat_templates``). They belong to the models' makers; they are kept in the user's cache and are not part of
this repository. A byte-level tokenizer stands in for the models' own: it has the template's special tokens.

A dialogue of three turns, with a system message, white space at both ends of every message, is encoded as `burnish sft`
does, and again with an empty second answer. For each answer, the tokens before the learnt ones must be those that
`burnish train` would give the model as the prompt, and the learnt ones the answer and one end token at which the sampler
stops. The table goes into docs/models.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from burnish.data.rows import Conversation
from burnish.policies.causal_lm import CausalModel
from burnish.policies.chat_template import ChatSettings, ChatTemplate
from burnish.supervised.encoding import Encoded, Encoder
from burnish.system.paths import home
from burnish.types import Message, Prompt

CACHE = home() / "templates"
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- chat templates: written by bench/templates.py -->", "<!-- end of the chat templates -->"
PACKAGES = (("llama-cpp-python", "0.3.36", "llama.cpp"), ("trl", "1.16.0", "trl"))
"""Package, version, and the name in the table."""
TOKENS = re.compile(
    r"<\|[\w\-▁/:. ]+?\|>|<｜[^｜>]+｜>|\[/?[A-Z_]{3,}\]|\[gMASK\]|</?(?:start|end)_of_\w+>|<\w+_of_\w+>|<SPECIAL_\d+>|"
    r"<\|\w+>|<\w+\|>|</?(?:think|tool_call|answer|response|role|assistant|user|system|s|bos|eos|sop|sep)>|</?\w+:\w+>|"
    r"\]~!?\w*\[|\[e~\[|<extra_id_\d+>"
)
"""Special tokens, as templates write them."""
FAMILIES = {
    "llama": ("<|begin_of_text|>", "<|eot_id|>"), "hermes": ("<|begin_of_text|>", "<|im_end|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "qwen": ("<|endoftext|>", "<|im_end|>"),
    "phi": ("<s>", "<|endoftext|>"), "gemma": ("<bos>", "<eos>"), "glm": ("<s>", "<|endoftext|>", "<|user|>"),
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"), "gpt": ("<|startoftext|>", "<|return|>"),
}  # fmt: skip
"""A part of a file's name -> the family's own tokens for the beginning and the end of text, and what else ends a text by
its generation_config; others get <s> and </s>."""
DIALOGUE = (
    Message("system", " \nBe brief.\n "), Message("user", "  \nWhat is 2+2?\n "), Message("assistant", " \n Four.\n  "),
    Message("user", " And 3+3?  "), Message("assistant", "\n Six. \n"), Message("user", "\tAnd 4+4? "),
    Message("assistant", "  Eight.\n"),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    source: str
    verdict: str
    note: str


def templates(cache: Path = CACHE) -> Iterator[tuple[str, str, str]]:
    """Yield name, source and text of each template; packages are downloaded on first use."""
    for package, release, source in PACKAGES:
        folder = cache / f"{package}-{release}"
        if not folder.is_dir():
            download(package, release, folder)
        for path in sorted(folder.glob("*.jinja")):
            yield path.stem, source, path.read_text(encoding="utf-8")


def download(package: str, release: str, folder: Path) -> None:
    """Download a package without installing it, and keep its templates."""
    archives = folder.with_suffix(".partial")
    archives.mkdir(parents=True, exist_ok=True)
    kind = ["--no-binary", package] if package == "llama-cpp-python" else []
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--dest", str(archives)]
    subprocess.run([*command, f"{package}=={release}"], check=True)
    (archive,) = archives.iterdir()
    texts: dict[str, bytes] = {}
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            texts = {name: wheel.read(name) for name in wheel.namelist() if name.endswith(".jinja")}
    else:
        with tarfile.open(archive) as distribution:
            for member in distribution:
                if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                    file = distribution.extractfile(member)
                    texts[member.name] = file.read() if file else b""
    archive.unlink()
    for name, text in texts.items():
        (archives / Path(name).name).write_bytes(text)
    archives.rename(folder)


def build_model(name: str, template: str) -> CausalModel:
    """Return a tiny model whose byte-level tokenizer has the template's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    family = name.lower().removeprefix("llama-cpp-")
    first, last, *more = next((tokens for part, tokens in FAMILIES.items() if part in family), ("<s>", "</s>"))
    tokens = dict.fromkeys([first, last, *TOKENS.findall(template)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(tokens))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=first, eos_token=last)
    fast.chat_template = template
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=100_000,
        bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if more:
        model.generation_config.eos_token_id = fast.convert_tokens_to_ids([last, *more])
    return CausalModel(model, fast)


def check(model: CausalModel, dialogue: Sequence[Message]) -> str:
    """Return how many sequences the dialogue is learnt as; raise AssertionError unless they are exact.

    Raises:
        ValueError: the row is refused.
    """
    sequences = Encoder(model, model.max_positions or 0).conversation(Conversation(tuple(dialogue), "unit"))
    runs = [run for sequence in sequences for run in learnt_runs(sequence)]
    answers = [index for index, message in enumerate(dialogue) if message.role == "assistant"]
    assert len(runs) == len(answers), f"{len(runs)} learnt spans for {len(answers)} answers"
    for (context, learnt), index in zip(runs, answers, strict=True):
        check_answer(model, dialogue[: index + 1], context, learnt)
    return "one sequence" if len(sequences) == 1 else f"{len(sequences)} sequences"


def check_answer(model: CausalModel, dialogue: Sequence[Message], context: list[int], learnt: list[int]) -> None:
    """Hold one learnt span against transformers' own text of the dialogue."""
    answer = dialogue[-1]
    prompt, whole = (render(model, dialogue[:-1], True), render(model, dialogue, False))
    prompt_ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(model.encode_prompt(Prompt("p", "", messages=tuple(dialogue[:-1])))) == prompt_ids, "the prompt differs"
    assert context[: len(prompt_ids)] == prompt_ids, "the answer's context is not the prompt"
    given = model.tokenizer.decode(context[len(prompt_ids) :])
    text = model.tokenizer.decode(learnt)
    assert learnt[-1] in model.end_ids and not set(learnt[:-1]) & model.end_ids, f"its end is wrong: {text!r}"
    last = model.tokenizer.decode(learnt[-1:])
    if answer.content.strip().startswith("<think>") and answer.content.strip() in prompt + text:
        return  # its thoughts begin in the prompt, and the template removes them from the whole text
    visible = answer.content
    assert visible in text or (visible.strip() in text and answer.reasoning), f"{text!r} is not the answer"
    # Apart from white space around the answer and the end token, the template writes the same.
    around = [re.escape(part.strip()) for part in text.removesuffix(last).split(visible.strip() or "\0", 1)]
    pattern = r"\s*".join([around[0], re.escape(visible.strip()), *around[1:]])
    assert re.search(pattern, whole), f"{given + text!r} is not in the template's text"


def learnt_runs(sequence: Encoded) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the learnt spans of a sequence, each with all tokens before it."""
    start = None
    for index, learnt in enumerate((*sequence.learnt, False)):
        if learnt and start is None:
            start = index
        elif not learnt and start is not None:
            yield [*sequence.prompt_ids, *sequence.token_ids[:start]], list(sequence.token_ids[start:index])
            start = None


def render(model: CausalModel, messages: Sequence[Message], begin_answer: bool) -> str:
    """Return transformers' own text of the messages."""
    dicts: list[dict[str, Any]] = []
    for message in messages:
        content = [{"type": "text", "text": message.content}] if model.chat.needs_parts else message.content
        thoughts = {"reasoning_content": message.reasoning} if message.reasoning else {}
        dicts.append({"role": message.role, "content": content, **thoughts})
    variables = dict(model.chat.settings.variables)
    return str(
        model.tokenizer.apply_chat_template(dicts, tokenize=False, add_generation_prompt=begin_answer, **variables)
    )


def variants() -> Iterator[tuple[str, Sequence[Message], dict[str, Any]]]:
    """Yield dialogues: the whole one, and what a user whose template refuses it would be told to try."""
    thoughts = "I add."
    yield "", DIALOGUE, {}
    yield "without a system message", DIALOGUE[1:], {}
    yield "with enable_thinking = false", DIALOGUE, {"enable_thinking": False}
    yield "with tools = []", DIALOGUE, {"tools": []}
    yield 'with functions = "" and datetime = ""', DIALOGUE, {"functions": "", "datetime": ""}
    apart = [replace(one, reasoning=thoughts) if one.role == "assistant" else one for one in DIALOGUE]
    yield "with reasoning_content", apart, {}
    inside = [
        replace(one, content=f"<think>\n{thoughts}\n</think>\n\n{one.content}") if one.role == "assistant" else one
        for one in DIALOGUE
    ]
    yield "with thoughts in the answers", inside, {}


def examine(name: str, source: str, template: str) -> Row:
    """Return the template's line of the table."""
    model = build_model(name, template)
    refusal = ""
    for label, dialogue, variables in variants():
        model.chat = ChatTemplate(model.tokenizer, ChatSettings(variables=variables))
        empty = [replace(one, content="") if index == len(dialogue) - 3 else one for index, one in enumerate(dialogue)]
        try:
            notes = [check(model, dialogue), *remarks(model, dialogue)]
        except AssertionError as error:
            return Row(name, source, "WRONG", f"{label}: {error}")
        except ValueError as error:
            refusal = refusal or f"refused: {error}"
            continue
        try:
            check(model, empty)
        except AssertionError as error:
            return Row(name, source, "WRONG", f"{label}, empty answer: {error}")
        except ValueError as error:
            notes.append(f"an empty answer is refused: {error}")
        verdict = f"exact {label}".strip()
        return Row(name, source, verdict, "; ".join([*([refusal] if refusal else []), *notes]))
    return Row(name, source, "refused", refusal.removeprefix("refused: "))


def remarks(model: CausalModel, dialogue: Sequence[Message]) -> list[str]:
    """Return what the template does to the dialogue besides writing it."""
    layout = model.chat.layout([*dialogue[:-1]])
    end = model.turn_end
    token = model.tokenizer.eos_token_id if end.token is None else end.token
    return [
        *(["strips messages"] if layout.stripped else []),
        *(["moves the system message"] if layout.moved else []),
        *(["follows generation marks"] if "endgeneration" in model.chat.source else []),
        *(["writes today's date"] if "strftime_now" in model.chat.source else []),
        f"ends with `{model.tokenizer.convert_ids_to_tokens(token)}`",
    ]


def write(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Replace the section of the page."""
    releases = ", ".join(f"{package} {release}" for package, release, _ in PACKAGES)
    exact = sum(row.verdict == "exact" for row in rows)
    other = sum(row.verdict.startswith("exact ") for row in rows)
    counts = (
        f"of {len(rows)} templates, {exact} are exact,\n{other} are exact for a dialogue that they accept, and "
        f"{len(rows) - exact - other} refused with the cause"
    )
    lines = [
        f"`make templates`, with transformers {version('transformers')}: {counts}.",
        f"The templates come from the packages {releases}; they are not part of this repository.",
        "",
        "Tried is a dialogue of three turns with a system message and white space at the ends of all messages, and again",
        "with an empty answer. `exact`: each answer is learned after the very tokens that sampling has as its prompt, as",
        "the row has it, up to one token at which sampling stops. Other verdicts name what a refused dialogue needs to be",
        "exact.",
        "",
        "| template | source | verdict | note |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.name} | {row.source} | {cell(row.verdict)} | {cell(row.note)} |" for row in rows]
    text = page.read_text(encoding="utf-8") if page.exists() else "# Models\n"
    before, _, rest = (text if BEGIN in text else f"{text}\n## Chat templates\n\n{BEGIN}\n{END}\n").partition(BEGIN)
    page.write_text(before + "\n".join([BEGIN, "", *lines, "", END]) + rest.partition(END)[2], encoding="utf-8")


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold chat templates against what sampling would have to produce.")
    parser.add_argument("--only", default="", help="only templates whose name has this in it; writes no table")
    only = parser.parse_args().only
    rows = [examine(name, source, text) for name, source, text in templates() if only in name]
    for row in rows:
        print(f"{row.source:9}  {row.name:55}  {row.verdict}  ({row.note})")
    if not only:
        write(rows)
    if wrong := [row.name for row in rows if row.verdict == "WRONG"]:
        sys.exit(f"{len(wrong)} templates are wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
