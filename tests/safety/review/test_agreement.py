from __future__ import annotations

import math

import numpy as np
import pytest

from burnish.safety.review.agreement import cohen_kappa, fleiss_kappa, gwet_ac1, measure_agreement, raw_agreement
from burnish.safety.review.store import APPROVE, FIRST, REJECT, SECOND, TIE, Answer, Judgement
from tests.safety.review.conftest import flagged, pair


def as_counts(rows):
    return np.array(rows, dtype=float)


def test_three_raters_and_three_labels():
    # Pairs of raters that agree, per item: 3 of 3, 1 of 3, 0 of 3; so p_a = 4/9 = 36/81.
    # Shares of the labels: (1 + 2/3 + 1/3)/3 = 2/3, (1/3 + 1/3)/3 = 2/9, (1/3)/3 = 1/9.
    # AC1: p_e = (18 + 14 + 8)/81/2 = 20/81, so 16/61. Fleiss: p_e = (36 + 4 + 1)/81, so -5/40.
    counts = as_counts([[3, 0, 0], [2, 1, 0], [1, 1, 1]])
    assert raw_agreement(counts) == pytest.approx(4 / 9)
    assert gwet_ac1(counts) == pytest.approx(16 / 61)
    assert fleiss_kappa(counts) == pytest.approx(-1 / 8)


def test_two_raters_and_two_labels():
    # Labels (0, 0) 20 times, (0, 1) 5, (1, 0) 10, (1, 1) 15. p_a = 35/50.
    # Cohen: margins 25/50 and 30/50, p_e = (25*30 + 25*20)/2500 = 1/2, kappa = 2/5.
    # Shares 0.55 and 0.45. AC1: p_e = 2*0.55*0.45 = 0.495, so 0.205/0.505. Fleiss: p_e = 0.505, so 0.195/0.495.
    counts = as_counts([[2, 0]] * 20 + [[1, 1]] * 15 + [[0, 2]] * 15)
    assert cohen_kappa(as_counts([[20, 5], [10, 15]])) == pytest.approx(0.4)
    assert gwet_ac1(counts) == pytest.approx(0.205 / 0.505)
    assert fleiss_kappa(counts) == pytest.approx(0.195 / 0.495)


def test_items_with_different_numbers_of_raters():
    # p_a = (1 + (4 + 1 - 3)/6)/2 = 2/3. Shares (1 + 2/3)/2 = 5/6 and 1/6; AC1: p_e = 2*5/36 = 10/36, so 14/26.
    counts = as_counts([[2, 0], [2, 1]])
    assert raw_agreement(counts) == pytest.approx(2 / 3)
    assert gwet_ac1(counts) == pytest.approx(14 / 26)


def test_one_odd_label_of_thirty():
    # p_a = 14/15, shares 29/30 and 1/30. AC1: p_e = 58/900, so 782/842. Fleiss: p_e = 842/900, so -2/58.
    counts = as_counts([[2, 0]] * 14 + [[1, 1]])
    assert gwet_ac1(counts) == pytest.approx(782 / 842)
    assert fleiss_kappa(counts) == pytest.approx(-1 / 29)


def test_kappa_of_equal_labels_is_undefined():
    assert math.isnan(fleiss_kappa(as_counts([[2, 0], [2, 0]])))
    assert math.isnan(cohen_kappa(as_counts([[5, 0], [0, 0]])))
    assert gwet_ac1(as_counts([[2, 0], [2, 0]])) == 1.0


def judged(make, rows):
    for number, labels in enumerate(rows):
        item = make(number)
        for name, label in zip(("ann", "bob", "eve"), labels, strict=False):
            if label:
                one = type(item)(item.kind, item.reason, item.prompt, item.texts, id=number + 1)
                yield Judgement(one, name, Answer(label), 0.0)


def test_equal_labels_are_reported_and_not_nan():
    one = measure_agreement(judged(flagged, [(APPROVE, APPROVE)] * 5), "text")
    assert one.all_equal and one.items == 5
    assert (one.raw.value, one.ac1.value, one.fleiss.value, one.cohen.value) == (1.0, 1.0, None, None)
    assert one.fleiss.interval is None and one.ac1.interval == (1.0, 1.0)


def test_intervals_contain_the_values_and_items_of_one_person_do_not_count():
    rows = [(FIRST, FIRST)] * 12 + [(FIRST, SECOND)] * 4 + [(SECOND, SECOND)] * 8 + [(TIE, None)] * 9
    one = measure_agreement(judged(pair, rows), "pair")
    assert one.items == 24 and not one.all_equal
    for coefficient in (one.raw, one.ac1, one.fleiss, one.cohen):
        low, high = coefficient.interval
        assert low < coefficient.value < high
    # 20 of 24 agree: the normal interval is 0.833 +- 1.96*sqrt(0.833*0.167/24) = 0.684 to 0.982.
    assert one.raw.value == pytest.approx(20 / 24)
    assert one.raw.interval == pytest.approx((0.684, 0.982), abs=0.04)


def test_cohens_kappa_is_of_two_people_only():
    one = measure_agreement(judged(flagged, [(APPROVE, REJECT, None), (None, APPROVE, APPROVE)]), "text")
    assert one.items == 2 and one.cohen is None


def test_no_common_item_has_no_agreement():
    assert measure_agreement(judged(pair, [(FIRST,), (SECOND,)]), "pair") is None
    assert measure_agreement(judged(flagged, [(APPROVE, REJECT)]), "pair") is None
