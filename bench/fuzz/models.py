"""Cases of damaged model folders: config, header, weights, tokenizer, adapter and template, through verbs that load them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bench.fuzz.case import Case, Command, Content, placed
from bench.fuzz.damage import damaged_json, damaged_times
from bench.fuzz.samples import TINY, toml
from bench.fuzz.stock import Stock

TEMPLATES = (
    "{{ messages[0].content }}", "", "x", "{% for message in messages %}", "{{ messages[9] }}", "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}", "{{ messages | tojson }}", "{% set x = namespace(n=0) %}{{ x.n.real.imag }}",
    "{{ bos_token * 3 }}",
    "{{ messages[0]['content'][0:3] }}{{ eos_token }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "\ud800",
    "{{ strftime_now('%Y') }}",
)  # fmt: skip
"""Chat templates that yield nothing, ignore the message, fail, or go round for ever."""
OFTEN = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json", "adapter_config.json")


@st.composite
def cases(draw: Any, stock: Stock) -> Case:
    """Draw a model folder or an adapter with some damage, and a verb that loads it."""
    which = draw(st.sampled_from(("model", "model", "adapter")))
    folder = {name.partition("/")[2]: what for name, what in stock.trees[which].items()}
    often = [name for name in OFTEN if name in folder]
    changes: tuple[str, ...]
    way = draw(st.sampled_from(("often", "often", "any", "template")))
    if way == "often":
        name = draw(st.sampled_from(often))
        data = folder[name]
        assert isinstance(data, bytes)
        folder[name], text = damaged_json(draw, data)
        changes = (f"{name}: {text}",)
    elif way == "any":
        folder, changes = damaged_times(draw, folder, "../outside", most=2)
    else:
        text = draw(st.sampled_from(TEMPLATES) | st.text(alphabet="{}%| abmessage[]0.", max_size=30))
        folder["chat_template.jinja"], changes = text.encode("utf-8", "surrogatepass"), (f"template {text!r}",)
    tree: dict[str, Content] = {**(stock.trees["model"] if which == "adapter" else {}), **placed(folder, which)}
    tree |= {"questions.jsonl": stock.trees["data"]["questions.jsonl"], "tiny.toml": toml(TINY)}
    tiny = ("--set", f"policy.model={which}", "--quiet")
    command = draw(
        st.sampled_from(
            (
                ("generate", which, "What is it?", "--max-new-tokens", "2"),
                ("generate", which, "What is it?", "--max-new-tokens", "2", "--json", "--plain"),
                ("generate", which, "What is it?", "--max-new-tokens", "2", "--chat", "--system", "Be brief."),
                ("evaluate", which, "--recipe", "tiny.toml", "--json"),
                ("train", "tiny.toml", "--run-dir", "run", *tiny),
                ("train", "tiny.toml", "--dry-run", *tiny),
                ("check", "questions.jsonl", "--model", which, "--set", "prompt=question"),
                ("export", which, "--to", "exported"),
            )
        )
    )
    return Case("models", tree, (Command(command),), changes)
