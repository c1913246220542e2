from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from burnish.safety.review.access import csrf_token
from burnish.safety.review.app import make_app
from burnish.safety.review.queue import QueueSettings, choose_items


def row(prompt, text, reward=0.0, parts=None, flags=(), step=1, **more):
    return {
        "step": step, "prompt_id": f"id {prompt}", "prompt": prompt, "completion": text, "reward": reward,
        "parts": parts or {}, "flags": list(flags), **more,
    }  # fmt: skip


def by_reason(items):
    return {item.prompt: item.reason for item in items}


def test_flagged_texts_come_first_and_harmless_flags_do_not_count():
    rows = [
        row("a", "short", flags=["truncated"]), row("a", "bad", flags=["truncated", "insult"]),
        row("b", "worse", parts={"content_filter": -1.0}), row("b", "fine", parts={"content_filter": 0.0}),
    ]  # fmt: skip
    items = choose_items(rows, QueueSettings())
    assert [(item.kind, item.texts) for item in items[:2]] == [("text", ("bad",)), ("text", ("worse",))]
    assert {item.kind for item in items[2:]} == {"pair"} and len(items) == 4
    assert items[0].details["flags"] == ["truncated", "insult"]


def test_parts_that_disagree_and_rewards_that_are_near_are_chosen():
    rows = []
    for prompt, (first, second) in {
        "disagree": ({"x": 0.0, "y": 1.0}, {"x": 1.0, "y": 0.0}),
        "agree": ({"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 1.0}),
        "near": ({"x": 0.5, "y": 0.5}, {"x": 0.5, "y": 0.6}),
    }.items():
        for name, parts in (("one", first), ("two", second)):
            rows.append(row(prompt, name, 3 * parts["x"] + parts["y"], parts))
    items = choose_items(rows, QueueSettings(pairs=2, random=0.0))
    assert by_reason(items) == {"disagree": "disagreement", "near": "uncertain"}


def test_a_share_is_drawn_by_chance_with_the_seed():
    rows = [row(str(prompt), text, reward=prompt) for prompt in range(40) for text in ("one", "two")]
    first, again, other = (choose_items(rows, QueueSettings(pairs=20, random=0.5, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 20 and len({item.prompt for item in first}) == 20
    assert sum(item.reason == "random" for item in first) == 10


def test_equal_texts_empty_ones_and_single_samples_make_no_pair():
    rows = [row("a", "same"), row("a", "same"), row("b", " "), row("b", "text"), row("c", "alone")]
    assert choose_items(rows, QueueSettings()) == []


def test_rows_that_lack_parts_or_numbers_are_compared_without_them():
    rows = [row("a", "one", None, {"x": None}), row("a", "two", 1.0, {"y": 2.0}), {"prompt": 3}, {"completion": "x"}]
    (item,) = choose_items(rows, QueueSettings(random=0.0))
    assert item.texts == ("one", "two")


def test_a_conversation_keeps_its_messages():
    messages = [{"role": "user", "content": "hi"}]
    rows = [row("hi", "one", messages=messages), row("hi", "two", messages=messages)]
    (item,) = choose_items(rows, QueueSettings())
    assert list(item.messages) == messages


ODD = [
    [1], "text", None, 3,
    row("a", "odd", step=[1]), row("a", "odd", prompt_id={"a": 1}), row("a", "odd", flags=[{"a": 1}, ["b"], None]),
    {**row("a", "odd"), "flags": "text"}, {**row("a", "odd"), "parts": [1]}, row("a", "odd", "nan", {"x": "nan"}),
    row("a", "odd", 10**400, {"x": 10**400}), row("a", "odd", 1.7e308, {"x": -1.7e308}),
    row("a", "odd", float("nan"), {"x": float("inf")}), row("a", "half \ud800 pair"),
    row("a", "odd", messages=[{"role": 5, "content": {"a": [1]}}]), row("a", "odd", messages="text"),
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_rows_that_another_program_wrote_stop_nothing(odd, store):
    usual = [row("a", "one", 1.7e308, {"x": 1.0}), row("a", "two", -1.7e308, {"x": -1.7e308})]
    items = choose_items([*usual, odd], QueueSettings(pairs=10))
    assert "pair" in [item.kind for item in items]
    store.add_items(items)
    with TestClient(make_app(store), base_url="http://127.0.0.1") as client:
        client.post("/enter", data={"token": store.add_reviewer("bob")})
        (session,) = client.cookies.values()
        for _ in items:  # each is shown, and can be judged
            page = client.get("/")
            (number,) = set(re.findall(r'name="item" value="(\d+)"', page.text))
            choice = "tie" if 'value="tie"' in page.text else "approve"
            sent = {"csrf": csrf_token(session), "item": number, "choice": choice}
            assert client.post("/judge", data=sent).status_code == page.status_code == 200
    assert sum(1 for _ in store.judgements()) == len(items)
