from __future__ import annotations

import pytest

from burnish.errors import InputError
from burnish.safety.review.store import APPROVE, FIRST, PAIR, SECOND, TIE, Answer, AnswerRefused, ReviewItem
from tests.safety.review.conftest import flagged, judge_in_threads, pair, visitor


def test_an_item_is_lent_to_one_visitor_until_the_lease_ends(store, clock):
    store.add_items([pair(1), pair(2)])
    ann, bob = visitor(store, "ann"), visitor(store, "bob")
    assert store.next_item(ann).prompt == "prompt 1"
    assert store.next_item(bob).prompt == "prompt 2"
    assert store.next_item(ann).prompt == "prompt 1"  # asking again renews the lease
    assert store.next_item(visitor(store, "eve")) is None
    clock.now += 59
    store.next_item(ann)
    clock.now += 2  # bob's lease of 60 seconds ended, ann's was renewed
    assert store.next_item(visitor(store, "dan")).prompt == "prompt 2"
    with pytest.raises(AnswerRefused, match="went to another reviewer"):
        store.judge(bob, 2, Answer(FIRST))
    store.judge(ann, 1, Answer(FIRST))


def test_an_answer_after_the_lease_counts_if_nobody_took_the_item(store, clock):
    store.add_items([pair(1)])
    ann = visitor(store, "ann")
    item = store.next_item(ann)
    clock.now += 3600
    store.judge(ann, item.id, Answer(TIE))
    assert [one.answer.label for one in store.judgements()] == [TIE]


def test_two_browsers_of_one_reviewer_hold_different_items(store):
    store.add_items([pair(1), pair(2)])
    token = store.add_reviewer("ann")
    first, second = store.visitor(token, "one"), store.visitor(token, "two")
    assert store.next_item(first).prompt != store.next_item(second).prompt


def test_the_same_answer_sent_again_changes_nothing(store):
    store.add_items([pair(1)])
    ann = visitor(store, "ann")
    item = store.next_item(ann)
    store.judge(ann, item.id, Answer(FIRST))
    store.judge(ann, item.id, Answer(SECOND))
    assert [one.answer.label for one in store.judgements()] == [FIRST]
    assert store.progress().done[PAIR] == 1


def test_an_item_without_a_lease_cannot_be_judged(store):
    store.add_items([pair(1)])
    with pytest.raises(AnswerRefused):
        store.judge(visitor(store, "ann"), 1, Answer(FIRST))


def test_undo_returns_the_item_to_the_visitor(store):
    store.add_items([pair(1), pair(2)])
    ann, bob = visitor(store, "ann"), visitor(store, "bob")
    item = store.next_item(ann)
    store.judge(ann, item.id, Answer(FIRST))
    assert store.next_item(ann).prompt == "prompt 2"
    assert not store.undo(bob)
    assert store.undo(ann)
    assert list(store.judgements()) == []
    assert store.next_item(ann).prompt == "prompt 1"
    assert store.next_item(bob).prompt == "prompt 2"
    store.judge(ann, item.id, Answer(SECOND))
    assert [one.answer.label for one in store.judgements()] == [SECOND]
    assert store.undo(ann) and not store.undo(ann)


def test_a_skipped_item_comes_last(store):
    store.add_items([pair(1), pair(2)])
    ann = visitor(store, "ann")
    store.skip(ann, store.next_item(ann).id)
    assert store.next_item(ann).prompt == "prompt 2"
    store.judge(ann, 2, Answer(TIE))
    assert store.next_item(ann).prompt == "prompt 1"


def test_an_item_that_two_should_judge_goes_to_two_people(store):
    store.add_items([pair(1)], wanted=lambda item: 2)
    ann, bob = visitor(store, "ann"), visitor(store, "bob")
    assert store.next_item(ann) and store.next_item(bob) is None
    store.judge(ann, 1, Answer(FIRST))
    assert store.next_item(ann) is None
    assert store.next_item(bob)
    store.judge(bob, 1, Answer(SECOND))
    assert store.next_item(visitor(store, "eve")) is None
    assert store.progress().done[PAIR] == 1


def test_an_item_is_queued_once(store):
    assert store.add_items([pair(1), flagged(1), pair(1)]) == 2
    assert store.add_items([pair(1), pair(2)]) == 1
    assert store.progress().total == {"pair": 2, "text": 1}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(APPROVE), "first, second, tie"),
        (Answer(FIRST, (6, None)), "from 1 to 5"),
        (Answer(FIRST, (5,)), "write 2 from 1 to 5"),
        (Answer(FIRST, (), ("nice",)), "tag 'nice'"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(store, answer, message):
    store.add_items([pair(1)])
    ann = visitor(store, "ann")
    store.next_item(ann)
    with pytest.raises(InputError, match=message):
        store.judge(ann, 1, answer)


def test_a_new_token_ends_the_one_before(store):
    first, second = store.add_reviewer("ann"), store.add_reviewer("ann")
    assert store.visitor(first, "") is None
    assert store.visitor(second, "").name == "ann"
    assert store.visitor("", "") is None
    with store.engine.begin() as connection:
        dump = str(connection.exec_driver_sql("SELECT * FROM reviewer").all())
    assert second not in dump


@pytest.mark.parametrize("name", ["", " ann", "a\nb", "x" * 41])
def test_a_reviewers_name_is_one_short_line(store, name):
    with pytest.raises(InputError, match="1 to 40 printable"):
        store.add_reviewer(name)


def test_any_text_is_kept(store):
    item = ReviewItem(
        PAIR, "random", "\x00 \ud83d 你好", ("a\u2028", "</script>"), ({"role": "user", "content": "\x00"},)
    )
    store.add_items([item])
    shown = store.next_item(visitor(store, "ann"))
    assert (shown.prompt, shown.texts, shown.messages) == (item.prompt, item.texts, item.messages)


def test_many_threads_never_judge_the_same_item(store):
    store.add_items(pair(number) for number in range(60))
    judged = judge_in_threads(store, 4)
    assert len(judged) == len(set(judged)) == 60
