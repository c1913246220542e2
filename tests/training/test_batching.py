"""Microbatches by tokens: what stays together, what is cut, and that nothing is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from burnish.training.batching import TokenBudget, microbatches
from burnish.types import Completion, Prompt


def completions(*groups: tuple[int, list[int]]) -> list[Completion]:
    """For each group the length of its prompt and of its completions."""
    return [
        Completion(Prompt(str(place), ""), (place,) * prompt, (7,) * length, "", (), "length")
        for place, (prompt, lengths) in enumerate(groups)
        for length in lengths
    ]


def cut(found: list[Completion], usual: int, most: int) -> list[list[int]]:
    return microbatches(found, range(len(found)), TokenBudget(usual, most))


def test_small_groups_share_a_microbatch():
    # 10 + 3 5 = 25 tokens a group: two make 50, a third would make 75.
    found = completions(*[(10, [5, 5, 5])] * 3)
    assert cut(found, 50, 1000) == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert cut(found, 49, 1000) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_large_group_stays_whole_where_it_fits():
    found = completions((600, [30] * 16), (10, [5]))
    assert cut(found, 1024, 1080) == [list(range(16)), [16]]


def test_a_group_that_does_not_fit_is_cut_and_its_prompt_counted_again():
    # 600 + 14 30 = 1020, a fifteenth would make 1050; then 600 + 2 30 + a group of 15 = 675.
    found = completions((600, [30] * 16), (10, [5]))
    assert cut(found, 1024, 1079) == [list(range(14)), [14, 15, 16]]


def test_a_completion_larger_than_the_budget_is_alone():
    assert cut(completions((3, [100, 1, 100])), 50, 50) == [[0], [1], [2]]


def test_only_the_chosen_places():
    found = completions((10, [5, 5, 5]), (10, [5, 5, 5]))
    assert microbatches(found, [1, 4, 5], TokenBudget(100, 100)) == [[1, 4, 5]]
    # Two prompts of 10 and three completions of 5 are 35.
    assert microbatches(found, [1, 4, 5], TokenBudget(34, 34)) == [[1], [4, 5]]


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.lists(st.integers(0, 40), min_size=1, max_size=6)), min_size=1, max_size=6
    ),
    st.integers(1, 120),
    st.integers(0, 200),
)
def test_nothing_is_lost_and_the_budget_holds(groups, usual, more):
    found = completions(*groups)
    batches = cut(found, usual, usual + more)
    assert [place for batch in batches for place in batch] == list(range(len(found)))
    for batch in batches:
        prompts = {found[place].prompt_ids for place in batch}
        tokens = sum(map(len, prompts)) + sum(len(found[place].token_ids) for place in batch)
        assert len(batch) == 1 or tokens <= (usual if len(prompts) > 1 else usual + more)
