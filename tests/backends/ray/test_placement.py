"""Bundles of a run's processes, without a cluster."""

from __future__ import annotations

import pytest

from burnish.backends.ray import placement
from burnish.backends.ray.placement import Bundle, bundles, sampler_threads
from burnish.recipe.backend import BackendSection


def backend(**keys) -> BackendSection:
    return BackendSection(use="ray", **keys)


def test_threads_of_a_sampler(monkeypatch):
    monkeypatch.setattr(placement, "cores", lambda: 8)
    assert sampler_threads(backend()) == 8
    assert sampler_threads(backend(samplers=3)) == 2
    assert sampler_threads(backend(samplers=20)) == 1
    assert sampler_threads(backend(address="auto")) == 1
    assert sampler_threads(backend(address="auto", cpus=4)) == 4


def test_every_process_has_a_bundle_of_its_own():
    found, seats = bundles(backend(samplers=2, learners=3, scorers=1, cpus=2, gpus=1, learner_gpus=0.5))
    assert found == [Bundle(("sampler",), 2, 1.0)] * 2 + [Bundle(("learner",), 2, 0.5)] * 2 + [
        Bundle(("scorer",), 2, 0)
    ]
    assert seats == {("sampler", 0): 0, ("sampler", 1): 1, ("learner", 0): 2, ("learner", 1): 3, ("scorer", 0): 4}


@pytest.mark.parametrize("samplers", [1, 2, 3])
def test_learners_share_the_bundles_of_samplers(samplers):
    found, seats = bundles(backend(samplers=samplers, learners=3, cpus=1, gpus=0.5, learner_gpus=0.5, colocate=True))
    shared = min(samplers, 2)
    assert found[:shared] == [Bundle(("sampler", "learner"), 2, 1.0)] * shared
    assert len(found) == max(samplers, 2) and sum(bundle.cpus for bundle in found) == samplers + 2
    assert all(found[index].kinds.count(kind) == 1 for (kind, _), index in seats.items())


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"colocate": True}, "colocate: the driver is the only learner"),
        ({"colocate": True, "learners": 2, "gpus": 0.5, "learner_gpus": 0.75}, "more than one and no whole number"),
        ({"placement": "anywhere"}, "placement"),
    ],
)
def test_what_cannot_be_placed_is_refused(keys, named):
    with pytest.raises(ValueError, match=named):
        backend(**keys)
