"""torch modules as policies: the contract that is checked at load, log-probabilities, sampling, saving, gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from burnish.backends.modules import seeded
from burnish.errors import InputError
from burnish.generation.modules import ModuleSampler
from burnish.policies.lstm import LSTM
from burnish.policies.module import ModulePolicy, as_logits
from burnish.policies.vocabulary import CharacterVocabulary
from burnish.types import Completion, Message, Prompt, SamplingParams

WORLD = CharacterVocabulary(tuple("我爱你。"), begin=3, end=3)
"""The four characters of the toy; the full stop also begins a text, as an end-of-text token may."""


class Causal(nn.Module):
    """Module that scores the mean of the embeddings so far, with options that each break the contract in one way."""

    def __init__(self, vocabulary_size: int, *, broken: str = "", last: str = "") -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, 5)
        self.head = nn.Linear(5, vocabulary_size)
        self.broken, self.last = broken, last

    def forward(self, tokens):
        seen = self.embedding(tokens)
        running = seen.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        if self.broken == "looks ahead":
            running = seen.mean(1, keepdim=True).expand_as(seen)
        if self.broken == "batch":
            running = running - running.mean(0)
        scores = self.head(running)
        if self.broken == "last":
            return scores[:, -1]
        if self.broken == "tuple":
            return scores, None
        if self.broken == "nan":
            return scores * torch.nan
        if self.last:
            scores = getattr(scores, self.last)(-1)
        return scores


def policy_of(module=None, vocabulary=WORLD, scores="logits", seed=0) -> ModulePolicy:
    with seeded(seed):
        made = LSTM(vocabulary.size, embedding=3, hidden=4, layers=2) if module is None else module(vocabulary.size)
    return ModulePolicy(made.double(), vocabulary, scores=scores)


def completion(prompt_ids, token_ids) -> Completion:
    return Completion(Prompt("p", ""), tuple(prompt_ids), tuple(token_ids), "", (), "length")


class TestContract:
    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ("looks ahead", "looks ahead"),
            ("batch", "rest of the batch"),
            ("last", "return_sequences=True"),
            ("tuple", "returns a tuple"),
            ("nan", "not finite numbers"),
        ],
    )
    def test_a_broken_module_is_refused(self, broken, message):
        with pytest.raises(InputError, match=message) as caught:
            policy_of(lambda size: Causal(size, broken=broken))
        assert "\n" not in str(caught.value)

    def test_a_bidirectional_lstm_looks_ahead(self):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.head = nn.Embedding(4, 3), nn.Linear(8, 4)
                self.lstm = nn.LSTM(3, 4, batch_first=True, bidirectional=True)

            def forward(self, tokens):
                return self.head(self.lstm(self.embedding(tokens))[0])

        with pytest.raises(InputError, match="looks ahead"):
            ModulePolicy(Both(), WORLD, scores="logits")

    def test_the_number_of_scores_must_be_that_of_the_vocabulary(self):
        with pytest.raises(InputError, match="4 tokens, the module 7 scores"):
            ModulePolicy(Causal(7), WORLD, scores="logits")

    @pytest.mark.parametrize(
        ("last", "said", "message"),
        [
            ("softmax", "logits", "not logits"),
            ("", "probabilities", "sum"),
            ("log_softmax", "probabilities", "sum"),
            ("", "logprobs", "log_softmax"),
            ("softmax", "logprobs", "log_softmax"),
        ],
    )
    def test_scores_that_are_not_of_the_declared_kind_are_refused(self, last, said, message):
        with pytest.raises(InputError, match=message):
            policy_of(lambda size: Causal(size, last=last), scores=said)

    def test_an_advance_that_forgets_its_state(self):
        class Forgets(LSTM):
            def advance(self, tokens, state):
                return super().advance(tokens, None)

        with pytest.raises(InputError, match="reading on from a state"):
            policy_of(lambda size: Forgets(size, embedding=3, hidden=4))

    def test_a_module_without_trainable_parameters_is_refused(self):
        with pytest.raises(InputError, match="no parameter to train"):
            policy_of(lambda size: Causal(size).requires_grad_(False))


def test_a_module_that_cannot_be_copied_is_refused():
    class Alone(Causal):
        def __deepcopy__(self, memo):
            raise RuntimeError("one is enough")

    with pytest.raises(InputError, match=r"cannot be copied.*one is enough"):
        policy_of(Alone)


class TestLogprobs:
    DONE = (completion((3,), (0, 1, 2, 3)), completion((3, 0, 1), (2,)), completion((3,), (1, 1)), completion((3,), ()))

    @pytest.mark.parametrize("temperature", [1.0, 0.5])
    def test_equal_those_of_a_plain_loop_over_tokens(self, temperature):
        policy = policy_of()
        expected = []
        for one in self.DONE:
            for index, token in enumerate(one.token_ids):
                before = torch.tensor([[*one.prompt_ids, *one.token_ids[:index]]])
                logits = policy.module(before)[0, -1] / temperature
                expected.append(logits[token] - logits.exp().sum().log())
        stats = policy.logprobs(self.DONE, SamplingParams(4, temperature))
        torch.testing.assert_close(stats.logprobs, torch.stack(expected), rtol=0, atol=1e-12)
        found = policy.token_logprobs(self.DONE, temperature)
        torch.testing.assert_close(found, stats.logprobs.detach(), rtol=0, atol=1e-12)

    def test_gradients_from_states_and_from_whole_texts_are_equal(self):
        policy = policy_of()
        gradients = []
        for advances in (True, False):
            policy.advances = advances
            policy.module.zero_grad()
            (policy.logprobs(self.DONE, SamplingParams(4)).logprobs * torch.arange(7)).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable().values()]))
        assert gradients[0].abs().max() > 0.1
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("last", "scores"), [("softmax", "probabilities"), ("log_softmax", "logprobs")])
    def test_all_kinds_of_scores_give_the_same_policy(self, last, scores):
        plain, other = policy_of(Causal), policy_of(lambda size: Causal(size, last=last), scores=scores)
        found = []
        for policy in (plain, other):
            stats = policy.logprobs(self.DONE, SamplingParams(4, 0.7))
            stats.logprobs.sum().backward()
            found.append((stats.logprobs.detach(), policy.module.head.weight.grad))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)

    def test_a_probability_of_zero_has_gradient_zero_instead_of_nan(self):
        scores = torch.tensor([[0.0, 0.25, 0.75]], requires_grad=True)
        as_logits(scores, "probabilities").log_softmax(-1)[0, 1].backward()
        # d/dp1 (log p1 - log(p1 + p2)) = 4 - 1; d/dp2 = -1.
        torch.testing.assert_close(scores.grad, torch.tensor([[0.0, 3.0, -1.0]]))

    def test_the_gradient_of_the_entropy_under_top_k(self):
        policy = policy_of(Causal)
        one, sampling, bias = [completion((3,), (1,))], SamplingParams(4, top_k=2), policy.module.head.bias
        assert not policy.logprobs(one, sampling).entropy.requires_grad
        (found,) = torch.autograd.grad(policy.logprobs(one, sampling, entropy_gradient=True).entropy.sum(), bias)
        expected = torch.zeros(4, dtype=torch.float64)
        with torch.no_grad():
            for token in range(4):
                sides = []
                for step in (1e-5, -2e-5):
                    bias[token] += step
                    sides.append(policy.logprobs(one, sampling).entropy)
                bias[token] += 1e-5
                expected[token] = (sides[0] - sides[1]) / 2e-5
        assert (expected.abs() > 1e-3).sum() >= 2
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)

    def test_no_completions(self):
        assert policy_of().token_logprobs([]).shape == (0,)
        assert policy_of().logprobs([completion((3,), ())], SamplingParams(1)).logprobs.shape == (0,)


class TestSampling:
    # Lengths are unsorted: prompts of equal length are processed together and put back in order.
    PROMPTS = (Prompt("a", ""), Prompt("b", "我爱"), Prompt("c", "你"), Prompt("d", "爱"), Prompt("e", "爱我"))

    def sample(self, policy, prompts=PROMPTS, recompute=False, **options):
        sampler = ModuleSampler(policy, recompute=recompute)
        sampling = SamplingParams(6, **options)
        return sampler.sample(prompts, samples_per_prompt=5, sampling=sampling, seed=(1, 2))

    @pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 2}])
    def test_states_and_whole_texts_give_the_same_samples(self, options):
        policy = policy_of()
        for one, two in zip(
            self.sample(policy, **options), self.sample(policy, recompute=True, **options), strict=True
        ):
            for first, second in zip(one.completions, two.completions, strict=True):
                assert (first.token_ids, first.text, first.finish_reason) == (
                    second.token_ids, second.text, second.finish_reason,
                )  # fmt: skip
                assert first.sampler_logprobs == pytest.approx(second.sampler_logprobs, abs=1e-12)

    @pytest.mark.parametrize("module", [None, Causal])
    def test_a_sample_does_not_depend_on_the_other_prompts(self, module):
        policy = policy_of(module)
        together = self.sample(policy)
        for index, prompt in enumerate(self.PROMPTS):
            (alone,) = self.sample(policy, [prompt])
            assert [c.token_ids for c in alone.completions] == [c.token_ids for c in together[index].completions]

    @pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_p": 0.8}])
    def test_logprobs_equal_those_recorded_by_the_sampler(self, options):
        policy = policy_of()
        done = [c for group in self.sample(policy, **options) for c in group.completions]
        assert {c.finish_reason for c in done} == {"stop", "length"}
        assert all((c.token_ids[-1] == 3) == (c.finish_reason == "stop") and 3 not in c.token_ids[:-1] for c in done)
        recorded = torch.tensor([logprob for c in done for logprob in c.sampler_logprobs], dtype=torch.float64)
        found = policy.logprobs(done, SamplingParams(6, **options)).logprobs.detach()
        torch.testing.assert_close(found, recorded, rtol=0, atol=1e-12)

    def test_prompts_that_exceed_max_positions_are_refused(self):
        policy = policy_of(Causal)
        policy.module.max_positions = 8
        self.sample(policy, [Prompt("d", "爱")])  # 2 and 6
        with pytest.raises(InputError, match="prompt 'b' has 3 tokens; with 6 new ones"):
            self.sample(policy, self.PROMPTS[:4])

    def test_prompts_that_cannot_be_encoded_are_refused(self):
        with pytest.raises(InputError, match="prompt 'x': the vocabulary has no token for 'q'"):
            self.sample(policy_of(), [Prompt("x", "q")])
        with pytest.raises(InputError, match="'x' is a conversation, and this policy has no chat template"):
            self.sample(policy_of(), [Prompt("x", "爱", messages=(Message("user", "爱"),))])
        bare = ModulePolicy(Causal(4), CharacterVocabulary(tuple("我爱你。"), end=3), scores="logits")
        with pytest.raises(InputError, match="empty and the vocabulary has no token"):
            self.sample(bare, [Prompt("x", "")])


class TestSaving:
    def test_loading_restores_the_weights_and_leaves_the_reference(self, tmp_path):
        policy = policy_of()
        one = [completion((3,), (0, 1))]
        before = policy.reference.token_logprobs(one)
        policy.save(tmp_path)
        with torch.no_grad():
            policy.module.head.bias += torch.arange(4)
        moved = policy.token_logprobs(one)
        assert not torch.equal(moved, before)
        assert torch.equal(policy.reference.token_logprobs(one), before)
        policy.load(tmp_path)
        assert torch.equal(policy.token_logprobs(one), before)
        assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "vocabulary.json"}

    def test_tied_weights(self, tmp_path):
        class Tied(Causal):
            def __init__(self, size):
                super().__init__(size)
                self.head.weight = self.embedding.weight

        policy = policy_of(Tied)
        assert sorted(policy.trainable()) == ["embedding.weight", "head.bias"]
        policy.save(tmp_path)
        policy_of(Tied, seed=1).load(tmp_path)

    def test_the_folder_of_another_model_is_refused(self, tmp_path):
        policy_of(Causal).save(tmp_path)
        with pytest.raises(InputError, match="does not fit this policy"):
            policy_of().load(tmp_path)
        with pytest.raises(InputError, match="another vocabulary"):
            policy_of(Causal, vocabulary=CharacterVocabulary(tuple("abcd"))).load(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"x")
        with pytest.raises(InputError, match="cannot be read"):
            policy_of(Causal).load(tmp_path)


@pytest.mark.slow
def test_the_estimators_mean_is_the_policy_gradient_of_a_tiny_lstm():
    """E[R sum_t grad log pi(a_t)], enumerated with ``logprobs``, equals the gradient of J, written out by hand."""
    policy = policy_of()
    parameters = list(policy.trainable().values())
    bodies = [(*body, 3) for n in range(4) for body in itertools.product(range(3), repeat=n)]
    bodies += list(itertools.product(range(3), repeat=4))
    assert len(bodies) == 1 + 3 + 9 + 27 + 81
    generator = torch.Generator().manual_seed(5)
    rewards = torch.randn(len(bodies), generator=generator, dtype=torch.float64)
    every = [completion((3,), body) for body in bodies]

    # J as a plain loop over the module's output: products of probabilities, without any code of the policy.
    total = torch.zeros((), dtype=torch.float64)
    mass = 0.0
    for body, reward in zip(bodies, rewards, strict=True):
        chance = torch.ones((), dtype=torch.float64)
        for index, token in enumerate(body):
            logits = policy.module(torch.tensor([[3, *body[:index]]]))[0, -1]
            chance = chance * logits.exp()[token] / logits.exp().sum()
        total = total + chance * reward
        mass += float(chance.detach())
    assert mass == pytest.approx(1, abs=1e-12)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])

    stats = policy.logprobs(every, SamplingParams(4))
    lengths = [len(body) for body in bodies]
    sums = torch.stack([part.sum() for part in stats.logprobs.split(lengths)])
    estimate = (sums.detach().exp() * rewards * sums).sum()
    found = torch.cat([g.flatten() for g in torch.autograd.grad(estimate, parameters)])
    assert exact.abs().max() > 1e-3
    assert float((found - exact).abs().max()) < 1e-10
