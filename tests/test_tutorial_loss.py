"""The loss of countless tutorials against the policy gradient: exact expectations, and the numbers that the docs show."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("tutorial_loss_example", ROOT / "examples" / "tutorial_loss.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_sampled_tokens_give_the_policy_gradient_and_their_mean_over_all_does_not(example):
    logits, sentences, rewards = example.world()
    exact = example.policy_gradient(logits, sentences, rewards)
    ours = example.expected_gradient(example.sampled_tokens, logits, sentences, rewards)
    # J = 0.5 * 0.8 * 0.6 * 0.97 = 0.2328; dJ/d logit(爱|我) = J (1 - 0.8) + what 我 after 我 and the like add: nothing,
    # since the rewarded sentence has 我 once.
    assert float(exact[0, 1]) == pytest.approx(0.2328 * 0.2, abs=1e-15)
    assert float((ours - exact).abs().max()) < 1e-15
    theirs = example.expected_gradient(example.all_tokens, logits, sentences, rewards)
    # Of the rewarded sentence, chance J, step 2 of 4: d/d logit(爱|我) of mean_v log pi(v|我) = 1/4 - 0.8; over 4 steps.
    assert float(theirs[0, 1]) == pytest.approx(0.2328 * (0.25 - 0.8) / 4, abs=1e-15)
    assert float((theirs * exact).sum()) < 0


def test_one_climbs_and_the_other_falls(example):
    world = example.world()
    assert example.climbed(example.sampled_tokens, *world, steps=100) > 0.99
    # Uniform rows write it once in 4^4 = 256 times.
    assert 1 / 256 < example.climbed(example.all_tokens, *world, steps=100) < 0.02


@pytest.mark.parametrize("page", ["docs/en/policies.md", "docs/zh/policies.md"])
def test_the_docs_show_what_it_prints(example, capsys, page):
    example.main()
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"^```text\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)
    assert shown == printed


def test_a_batch_of_the_policy_agrees_with_the_example(example):
    """The product's own path on the same world: a table as a module, its ``logprobs``, and reward times their sum."""
    from burnish.policies.module import ModulePolicy
    from burnish.policies.vocabulary import CharacterVocabulary
    from burnish.types import Completion, Prompt, SamplingParams

    logits, sentences, rewards = example.world()
    # Row 4, the start, is a token of its own here, that comes with a probability of nearly nothing.
    vocabulary = CharacterVocabulary((*example.CHARACTERS, "<begin>"), begin=4, end=3)
    table = torch.nn.Embedding(5, 5, dtype=torch.float64)
    with torch.no_grad():
        table.weight[:, :4] = logits
        table.weight[:, 4] = -60.0
    policy = ModulePolicy(table, vocabulary, scores="logits")
    every = [
        Completion(Prompt("p", ""), (4,), tuple(tokens[mask].tolist()), "", (), "length")
        for tokens, mask in zip(sentences.tokens, sentences.mask, strict=True)
    ]
    stats = policy.logprobs(every, SamplingParams(4))
    sums = torch.stack([part.sum() for part in stats.logprobs.split(sentences.lengths.tolist())])
    (sums.detach().exp() * rewards * sums).sum().backward()
    exact = example.policy_gradient(logits, sentences, rewards)
    assert float((table.weight.grad[:, :4] - exact).abs().max()) < 1e-10
