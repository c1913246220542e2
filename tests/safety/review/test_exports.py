from __future__ import annotations

import json
from dataclasses import replace

import pytest

from burnish.data.rows import ConversationPair, LabelledCompletion, PreferencePair
from burnish.safety.review.exports import labelled_rows, preference_rows, write_rows
from burnish.safety.review.store import APPROVE, FIRST, REJECT, SECOND, TIE, Answer, Judgement
from burnish.supervised.data_rows import DataRows
from tests.safety.review.conftest import flagged, pair

CHAT = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "你好"})


def judge(item, number, *labels):
    return [Judgement(replace(item, id=number), f"r{index}", Answer(one), 0.0) for index, one in enumerate(labels)]


def test_the_preferred_text_is_chosen_and_ties_are_left_out():
    judgements = [
        *judge(pair(1), 1, FIRST), *judge(pair(2), 2, SECOND), *judge(pair(3), 3, TIE), *judge(pair(4), 4, FIRST, SECOND),
        *judge(pair(5), 5, SECOND, SECOND, FIRST), *judge(pair(6), 6, TIE, TIE, FIRST), *judge(flagged(7), 7, APPROVE),
    ]  # fmt: skip
    assert [(row["prompt"], row["chosen"]) for row in preference_rows(judgements)] == [
        ("prompt 1", "first 1"), ("prompt 2", "second 2"), ("prompt 5", "second 5"),
    ]  # fmt: skip


def test_one_rejection_makes_a_text_undesirable():
    judgements = [*judge(flagged(1), 1, APPROVE), *judge(flagged(2), 2, APPROVE, REJECT), *judge(pair(3), 3, FIRST)]
    assert [row["label"] for row in labelled_rows(judgements)] == [True, False]


def read(path):
    rows = DataRows(path=str(path)).rows()
    assert rows.broken == ()
    return list(rows.rows)


def test_the_loader_of_reward_models_reads_the_export(tmp_path):
    path = tmp_path / "pairs.jsonl"
    chat = replace(pair(2), messages=CHAT)
    assert write_rows(path, preference_rows([*judge(pair(1), 1, FIRST), *judge(chat, 2, SECOND)])) == 2
    text, conversation = read(path)
    assert isinstance(text, PreferencePair)
    assert (text.prompt, text.chosen, text.rejected) == ("prompt 1", "first 1", "second 1")
    assert isinstance(conversation, ConversationPair)
    assert [(one.role, one.content) for one in conversation.prompt] == [("system", "Be kind."), ("user", "你好")]
    assert [one.content for one in (*conversation.chosen, *conversation.rejected)] == ["second 2", "first 2"]


def test_the_loader_of_kto_reads_the_labels(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_rows(path, labelled_rows([*judge(flagged(1), 1, APPROVE), *judge(flagged(2), 2, REJECT)]))
    rows = read(path)
    assert all(isinstance(one, LabelledCompletion) for one in rows)
    assert [(one.completion, one.desirable) for one in rows] == [("text 1", True), ("text 2", False)]


def test_text_that_cannot_be_read_again_is_left_out(tmp_path):
    broken = replace(pair(1), texts=("half \ud83d", "whole"))
    path = tmp_path / "pairs.jsonl"
    assert write_rows(path, preference_rows([*judge(broken, 1, FIRST), *judge(pair(2), 2, FIRST)])) == 1
    assert json.loads(path.read_text(encoding="utf-8"))["prompt"] == "prompt 2"


@pytest.mark.parametrize("prompt", ["", "  "])
def test_a_pair_without_a_prompt_is_read(tmp_path, prompt):
    path = tmp_path / "pairs.jsonl"
    write_rows(path, preference_rows(judge(replace(pair(1), prompt=prompt), 1, FIRST)))
    assert len(read(path)) == 1
