"""Microbatches by tokens: groups that stay together, groups that are cut, and no completion lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from burnish.training.batching import TokenBudget, microbatches, split_by_tokens
from burnish.types import Completion, Prompt


def completions(*groups: tuple[int, list[int]]) -> list[Completion]:
    """Return completions from each group's prompt length and completion lengths."""
    return [
        Completion(Prompt(str(index), ""), (index,) * prompt, (7,) * length, "", (), "length")
        for index, (prompt, lengths) in enumerate(groups)
        for length in lengths
    ]


def cut(texts: list[Completion], usual: int, most: int) -> list[list[int]]:
    return microbatches(texts, range(len(texts)), TokenBudget(usual, most))


def test_small_groups_share_a_microbatch():
    # 10 + 3 * 5 = 25 tokens per group: two make 50, a third would make 75.
    texts = completions(*[(10, [5, 5, 5])] * 3)
    assert cut(texts, 50, 1000) == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert cut(texts, 49, 1000) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_large_group_stays_whole_if_it_fits():
    texts = completions((600, [30] * 16), (10, [5]))
    assert cut(texts, 1024, 1080) == [list(range(16)), [16]]


def test_a_group_that_does_not_fit_is_cut_and_its_prompt_counted_again():
    # 600 + 14 * 30 = 1020, and a fifteenth would make 1050; then 600 + 2 * 30 + a group of 15 = 675.
    texts = completions((600, [30] * 16), (10, [5]))
    assert cut(texts, 1024, 1079) == [list(range(14)), [14, 15, 16]]


def test_a_completion_larger_than_the_budget_is_alone():
    assert cut(completions((3, [100, 1, 100])), 50, 50) == [[0], [1], [2]]


def test_only_the_chosen_indices_are_batched():
    texts = completions((10, [5, 5, 5]), (10, [5, 5, 5]))
    assert microbatches(texts, [1, 4, 5], TokenBudget(100, 100)) == [[1, 4, 5]]
    # Two prompts of 10 tokens and three completions of 5 make 35.
    assert microbatches(texts, [1, 4, 5], TokenBudget(34, 34)) == [[1], [4, 5]]


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.lists(st.integers(0, 40), min_size=1, max_size=6)), min_size=1, max_size=6
    ),
    st.integers(1, 120),
    st.integers(0, 200),
)
def test_nothing_is_lost_and_the_budget_holds(groups, usual, more):
    texts = completions(*groups)
    batches = cut(texts, usual, usual + more)
    assert [index for batch in batches for index in batch] == list(range(len(texts)))
    for batch in batches:
        prompts = {texts[index].prompt_ids for index in batch}
        tokens = sum(map(len, prompts)) + sum(len(texts[index].token_ids) for index in batch)
        assert len(batch) == 1 or tokens <= (usual if len(prompts) > 1 else usual + more)


def test_shares_have_about_as_many_tokens():
    texts = completions((10, [5, 5]), (10, [20]), (40, [10]))  # 15, 5, 30, 50
    assert split_by_tokens(texts, range(4), 1) == [[0, 1, 2, 3]]
    assert split_by_tokens(texts, range(4), 2) == [[0, 1, 2], [3]]
    assert split_by_tokens(texts, [3], 2) == [[3]]
    assert split_by_tokens(texts, [], 2) == [[]]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 30), min_size=1, max_size=4)), max_size=6), st.data()
)
def test_shares_lose_nothing_and_none_is_empty(groups, data):
    texts = completions(*groups)
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(texts)))))) if texts else []
    shares = split_by_tokens(texts, chosen, data.draw(st.integers(2, 5)))
    assert [index for share in shares for index in share] == chosen
    assert all(shares) or shares == [[]]
