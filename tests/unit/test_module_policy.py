"""Any torch module as a policy: vocabularies, the contract at load, log-probabilities, sampling, saving, recipes."""

from __future__ import annotations

import itertools
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from burnish import api
from burnish.backends.local import build
from burnish.backends.modules import build_module_policy, seeded
from burnish.errors import InputError
from burnish.generation.stepwise import ModuleSampler
from burnish.policies.lstm import LSTM
from burnish.policies.module import ModulePolicy, as_logits
from burnish.policies.pretraining import rate, token_stream, windows
from burnish.policies.vocabulary import Bytes, Characters, build_vocabulary, read_vocabulary, write_vocabulary
from burnish.recipe import Pretrain, load_recipe
from burnish.reports.progress import make_observer
from burnish.run import comparable
from burnish.training import train_step
from burnish.types import Completion, Message, Prompt, SamplingParams

WORLD = Characters(tuple("我爱你。"), begin=3, end=3)
"""The four characters of the toy; the full stop also stands before the text, as an end-of-text token does."""
TEXTS = ["the cat sat on the mat.", "a dog sat on the cat.", "我爱你。"]


class Causal(nn.Module):
    """Scores from the mean of the embeddings so far; with options that break the contract one at a time."""

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


class TestVocabulary:
    def test_characters_by_hand(self):
        found = Characters.of(["ba", "c"])
        assert found.tokens == ("<end>", "<unknown>", "a", "b", "c")
        assert found.encode("cab<end>z") == (4, 2, 3, *[1] * 5, 1), "the mark's name in a text is no mark"
        assert found.decode((4, 2, 1, 0)) == "ca\ufffd"
        assert (found.begin, found.ends) == (0, {0})

    def test_a_character_that_ends_a_text_is_part_of_it(self):
        assert WORLD.decode(WORLD.encode("我爱你。")) == "我爱你。"
        with pytest.raises(InputError, match="no token for 'x'"):
            WORLD.encode("我x")

    def test_bytes_know_every_text(self):
        found = Bytes.of([])
        assert found.size == 257
        text = "a\n爱 <end> \U0001f600"
        assert len(found.encode(text)) == len(text.encode())
        assert found.decode((0, *found.encode(text), 0)) == text
        assert found.encode("\ud800") == found.encode("?"), "half an emoji has no bytes"

    def test_pairs_are_learnt_and_the_same_each_time(self):
        one, two = (build_vocabulary("bpe", TEXTS * 3, 280) for _ in range(2))
        assert one.to_json() == two.to_json()
        assert one.size > 257
        assert len(one.encode("the cat")) < 7
        assert one.decode(one.encode("the cat 爱")) == "the cat 爱"

    @pytest.mark.parametrize("kind", ["character", "byte", "bpe"])
    def test_it_comes_back_from_its_file(self, kind, tmp_path):
        made = build_vocabulary(kind, TEXTS, 270 if kind == "bpe" else None)
        write_vocabulary(made, tmp_path)
        found = read_vocabulary(tmp_path / "vocabulary.json")
        assert (found.to_json(), found.size, found.begin) == (made.to_json(), made.size, made.begin)
        assert [found.encode(text) for text in TEXTS] == [made.encode(text) for text in TEXTS]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not a vocabulary"),
            ('{"kind": "words"}', "known: character, byte, bpe"),
            ('{"kind": "character", "tokens": ["a", "a"]}', "all different"),
            ('{"kind": "character", "tokens": ["a", "b"], "end": 2}', "end = 2 is no token"),
            ('{"kind": "bpe", "tokenizer": {}}', "not a vocabulary"),
            ("[1]", "not a vocabulary"),
        ],
    )
    def test_a_file_that_is_none(self, tmp_path, text, message):
        (tmp_path / "v.json").write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_vocabulary(tmp_path / "v.json")
        assert "v.json" in str(caught.value)


class TestContract:
    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ("looks ahead", "looks ahead"),
            ("batch", "rest of the batch"),
            ("last", "return_sequences=True"),
            ("tuple", "returns a tuple"),
            ("nan", "no finite numbers"),
        ],
    )
    def test_what_is_refused(self, broken, message):
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

    def test_another_number_of_scores(self):
        with pytest.raises(InputError, match="4 tokens, the module 7 scores"):
            ModulePolicy(Causal(7), WORLD, scores="logits")

    @pytest.mark.parametrize(
        ("last", "said", "message"),
        [
            ("softmax", "logits", "no logits"),
            ("", "probabilities", "sum"),
            ("log_softmax", "probabilities", "sum"),
            ("", "logprobs", "log_softmax"),
            ("softmax", "logprobs", "log_softmax"),
        ],
    )
    def test_scores_are_what_they_are_said_to_be(self, last, said, message):
        with pytest.raises(InputError, match=message):
            policy_of(lambda size: Causal(size, last=last), scores=said)

    def test_an_advance_that_forgets_its_state(self):
        class Forgets(LSTM):
            def advance(self, tokens, state):
                return super().advance(tokens, None)

        with pytest.raises(InputError, match="reading on from a state"):
            policy_of(lambda size: Forgets(size, embedding=3, hidden=4))

    def test_nothing_to_train(self):
        with pytest.raises(InputError, match="no parameter to train"):
            policy_of(lambda size: Causal(size).requires_grad_(False))


def test_a_module_that_cannot_be_copied():
    class Alone(Causal):
        def __deepcopy__(self, memo):
            raise RuntimeError("one is enough")

    with pytest.raises(InputError, match=r"cannot be copied.*one is enough"):
        policy_of(Alone)


class TestLogprobs:
    DONE = (completion((3,), (0, 1, 2, 3)), completion((3, 0, 1), (2,)), completion((3,), (1, 1)), completion((3,), ()))

    @pytest.mark.parametrize("temperature", [1.0, 0.5])
    def test_each_token_by_a_plain_loop(self, temperature):
        policy = policy_of()
        expected = []
        for one in self.DONE:
            for place, token in enumerate(one.token_ids):
                before = torch.tensor([[*one.prompt_ids, *one.token_ids[:place]]])
                logits = policy.module(before)[0, -1] / temperature
                expected.append(logits[token] - logits.exp().sum().log())
        stats = policy.logprobs(self.DONE, SamplingParams(4, temperature))
        torch.testing.assert_close(stats.logprobs, torch.stack(expected), rtol=0, atol=1e-12)
        found = policy.token_logprobs(self.DONE, temperature)
        torch.testing.assert_close(found, stats.logprobs.detach(), rtol=0, atol=1e-12)

    def test_states_and_whole_texts_give_one_gradient(self):
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
    def test_all_kinds_of_scores_are_one_policy(self, last, scores):
        plain, other = policy_of(Causal), policy_of(lambda size: Causal(size, last=last), scores=scores)
        found = []
        for policy in (plain, other):
            stats = policy.logprobs(self.DONE, SamplingParams(4, 0.7))
            stats.logprobs.sum().backward()
            found.append((stats.logprobs.detach(), policy.module.head.weight.grad))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)

    def test_a_probability_of_zero_has_no_gradient_and_is_no_nan(self):
        scores = torch.tensor([[0.0, 0.25, 0.75]], requires_grad=True)
        as_logits(scores, "probabilities").log_softmax(-1)[0, 1].backward()
        # d/dp1 (log p1 - log(p1 + p2)) = 4 - 1; d/dp2 = -1.
        torch.testing.assert_close(scores.grad, torch.tensor([[0.0, 3.0, -1.0]]))

    def test_the_entropys_gradient_under_top_k(self):
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
    PROMPTS = (Prompt("a", ""), Prompt("b", "我爱"), Prompt("c", "你"), Prompt("d", "爱"))

    def sample(self, policy, prompts=PROMPTS, recompute=False, **options):
        sampler = ModuleSampler(policy, recompute=recompute)
        sampling = SamplingParams(6, **options)
        return sampler.sample(prompts, samples_per_prompt=5, sampling=sampling, seed=(1, 2))

    @pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 2}])
    def test_from_states_and_from_whole_texts_alike(self, options):
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
    def test_a_sample_does_not_hang_on_its_company(self, module):
        policy = policy_of(module)
        together = self.sample(policy)
        for place, prompt in enumerate(self.PROMPTS):
            (alone,) = self.sample(policy, [prompt])
            assert [c.token_ids for c in alone.completions] == [c.token_ids for c in together[place].completions]

    @pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_p": 0.8}])
    def test_the_trainer_says_what_the_sampler_said(self, options):
        policy = policy_of()
        done = [c for group in self.sample(policy, **options) for c in group.completions]
        assert {c.finish_reason for c in done} == {"stop", "length"}
        assert all((c.token_ids[-1] == 3) == (c.finish_reason == "stop") and 3 not in c.token_ids[:-1] for c in done)
        recorded = torch.tensor([logprob for c in done for logprob in c.sampler_logprobs], dtype=torch.float64)
        found = policy.logprobs(done, SamplingParams(6, **options)).logprobs.detach()
        torch.testing.assert_close(found, recorded, rtol=0, atol=1e-12)

    def test_positions_are_kept(self):
        policy = policy_of(Causal)
        policy.module.max_positions = 8
        self.sample(policy, [Prompt("d", "爱")])  # 2 and 6
        with pytest.raises(InputError, match="prompt 'b' has 3 tokens; with 6 new ones"):
            self.sample(policy)

    def test_a_prompt_that_cannot_be_encoded(self):
        with pytest.raises(InputError, match="prompt 'x': the vocabulary has no token for 'q'"):
            self.sample(policy_of(), [Prompt("x", "q")])
        with pytest.raises(InputError, match="'x' is a conversation, and this policy has no chat template"):
            self.sample(policy_of(), [Prompt("x", "爱", messages=(Message("user", "爱"),))])
        bare = ModulePolicy(Causal(4), Characters(tuple("我爱你。"), end=3), scores="logits")
        with pytest.raises(InputError, match="empty and the vocabulary has no token"):
            self.sample(bare, [Prompt("x", "")])


class TestSaving:
    def test_weights_come_back_and_the_reference_stays(self, tmp_path):
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

    def test_another_models_folder(self, tmp_path):
        policy_of(Causal).save(tmp_path)
        with pytest.raises(InputError, match="does not fit this policy"):
            policy_of().load(tmp_path)
        with pytest.raises(InputError, match="another vocabulary"):
            policy_of(Causal, vocabulary=Characters(tuple("abcd"))).load(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"x")
        with pytest.raises(InputError, match="cannot be read"):
            policy_of(Causal).load(tmp_path)


class TestPretraining:
    def test_the_stream_by_hand(self):
        vocabulary = Characters.of(["ab", "b"])  # a is 2, b is 3
        stream, starts = token_stream(vocabulary, ["ab", "b"])
        assert (stream.tolist(), starts) == ([0, 2, 3, 0, 3, 0], [0, 3])
        stream, starts = token_stream(WORLD, ["我。", "爱"])
        assert (stream.tolist(), starts) == ([3, 0, 3, 1, 3], [0, 2])
        stream, starts = token_stream(Characters(("a", "b")), ["ab", "b"])
        assert (stream.tolist(), starts) == ([0, 1, 1], [0, 2])

    def test_windows_lie_in_the_stream_and_half_of_them_begin_a_text(self):
        found = windows(torch.arange(50), [0, 20, 45], 4000, 9, (0, 3, 1))
        assert (found.diff(dim=1) == 1).all() and found.min() == 0 and found.max() == 49
        assert set(found[::2, 0].tolist()) == {0, 20, 40}, "the last begins too late for a whole window"
        assert len(set(found[1::2, 0].tolist())) == 41

    def test_rate(self):
        assert [round(rate(step, 40), 6) for step in (0, 1, 2, 21, 39)] == [0.5, 1.0, 1.0, 0.5, 0.001708]

    def test_it_learns_a_text_and_a_resumed_run_has_the_same_start(self, tmp_path):
        section = load_recipe("toy", ["policy.use=lstm", "policy.lstm={embedding=8, hidden=16}"]).policy
        section = section.model_copy(update={"pretrain": Pretrain(steps=60, learning_rate=0.03, windows=8, length=12)})

        def built(folder, texts=TEXTS):
            return build_module_policy(section, 0, texts=lambda: texts, folder=folder)[0]

        one = [completion((0,), built(None).encode(TEXTS[0]))]
        first, second = built(tmp_path / "one"), built(tmp_path / "two")
        uniform = -torch.log(torch.tensor(float(first.vocabulary.size)))
        assert first.token_logprobs(one).mean() > uniform / 2
        assert torch.equal(first.token_logprobs(one), second.token_logprobs(one)), "twice from one seed"
        # Taken up again it reads what it kept, and asks for no text.
        again = built(tmp_path / "one", texts=None)
        assert torch.equal(again.token_logprobs(one), first.token_logprobs(one))
        assert torch.equal(again.reference.token_logprobs(one), first.token_logprobs(one))

    def test_no_text(self):
        section = load_recipe("toy", ["policy.use=lstm", "policy.pretrain={steps=1}"]).policy
        with pytest.raises(InputError, match="no training text"):
            build_module_policy(section, 0, texts=lambda: [])


class TestRecipes:
    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["policy.use=module"], "needs policy.module"),
            (["policy.use=module", "policy.module=a:b"], "policy.scores is missing"),
            (["policy.use=lstm", "policy.scores=logits"], 'policy.scores belongs to policy.use = "module"'),
            (["policy.use=causal_lm", "policy.pretrain={}"], 'belongs to policy.use = "lstm" or "module"'),
            (["policy.use=lstm", "policy.lora={rank=2}"], 'policy.lora belongs to policy.use = "causal_lm"'),
            (["policy.use=lstm", "policy.vocabulary_size=300"], 'belongs to policy.vocabulary = "bpe"'),
            (["policy.use=lstm", "policy.weights=x", "policy.vocabulary=byte"], "brings its own"),
            (["policy.use=lstm", "policy.lstm={hiden=3}"], "did you mean 'hidden'"),
            (["policy.use=lstm", "policy.vocabulary_size=12", "policy.vocabulary=bpe"], "greater than or equal to 257"),
        ],
    )
    def test_refusals(self, overrides, message):
        with pytest.raises(InputError, match=message):
            load_recipe("toy", overrides)

    @pytest.mark.parametrize(
        ("code", "options", "message"),
        [
            ("make = 3", "", "neither a torch module nor a function"),
            ("def make(): return 3", "", "makes no torch module: it is a int"),
            ("def make(): return 1 / 0", "", "raised ZeroDivisionError"),
            ("def make(*, width=3): ...", "{widht = 2}", "did you mean 'width'"),
            ("import torch\nmake = torch.nn.Embedding(4, 4)", "{width = 2}", "takes no policy.options"),
        ],
    )
    def test_makers_that_make_nothing(self, tmp_path, monkeypatch, request, code, options, message):
        name = f"maker_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.chdir(tmp_path)
        extra = [f"policy.options={options}"] if options else []
        recipe = load_recipe("toy", ["policy.use=module", f"policy.module={name}:make", "policy.scores=logits", *extra])
        with pytest.raises(InputError, match=message):
            build_module_policy(recipe.policy, 0, texts=lambda: TEXTS)

    def test_a_module_of_ones_own_learns_the_toy(self, tmp_path, monkeypatch):
        (tmp_path / "world.json").write_text(json.dumps(WORLD.to_json()), encoding="utf-8")
        (tmp_path / "bigram_of_a_user.py").write_text(
            "import torch\n"
            "def make(vocabulary_size, *, gain=1.0):\n"
            "    table = torch.nn.Embedding(vocabulary_size, vocabulary_size)\n"
            "    torch.nn.init.constant_(table.weight, 0.0)\n"
            "    return torch.nn.Sequential(table, torch.nn.Softmax(-1))\n"
        )
        monkeypatch.chdir(tmp_path)
        recipe = load_recipe("toy", [
            "policy.use=module", "policy.module=bigram_of_a_user:make", "policy.scores=probabilities",
            "policy.vocabulary=world.json", "optimizer.learning_rate=0.2", "sampling.samples_per_prompt=16",
        ])  # fmt: skip
        learner, _ = build(recipe)
        found = [train_step(learner).metrics["reward/mean"] for _ in range(60)]
        # A uniform table says it once in 4^4 = 256 times.
        assert sum(found[:3]) / 3 < 0.05
        assert sum(found[-5:]) / 5 > 0.8, found


def test_the_estimator_is_the_policy_gradient_of_a_tiny_lstm():
    """E[R sum_t grad log pi(a_t)], by enumeration through ``logprobs``, against the gradient of J written out by hand."""
    policy = policy_of()
    parameters = list(policy.trainable().values())
    bodies = [(*body, 3) for n in range(4) for body in itertools.product(range(3), repeat=n)]
    bodies += list(itertools.product(range(3), repeat=4))
    assert len(bodies) == 1 + 3 + 9 + 27 + 81
    generator = torch.Generator().manual_seed(5)
    rewards = torch.randn(len(bodies), generator=generator, dtype=torch.float64)
    every = [completion((3,), body) for body in bodies]

    # J by a plain loop over the module's own output: products of probabilities, no function of the policy.
    total = torch.zeros((), dtype=torch.float64)
    mass = 0.0
    for body, reward in zip(bodies, rewards, strict=True):
        chance = torch.ones((), dtype=torch.float64)
        for place, token in enumerate(body):
            logits = policy.module(torch.tensor([[3, *body[:place]]]))[0, -1]
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


class TestRuns:
    OVERRIDES = (
        "policy.use=lstm",
        "policy.lstm={embedding=8, hidden=16, dropout=0.1}",
        "policy.pretrain={steps=20, learning_rate=0.03, windows=4, length=5}",
        "algorithm.kl.coefficient=0.05",
        "reward=[{use='perplexity'}]",
        "sampling.max_new_tokens=6",
        "evaluation.samples_per_prompt=2",
        "evaluation.resamples=100",
        "checkpoint.every=2",
    )

    def test_taken_up_again_it_has_the_same_bits_and_the_same_reference(self, tmp_path, monkeypatch):
        def run(**options):
            return api.train(observer=make_observer(quiet=True), **options)

        whole = run(recipe="toy", overrides=self.OVERRIDES, steps=4, run_dir=tmp_path / "whole")
        shutil.copytree(whole.run_dir, tmp_path / "cut", symlinks=True)
        for gone in ("checkpoints/step-4", "evaluation/after.json", "evaluation.json"):
            path = tmp_path / "cut" / gone
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        monkeypatch.setattr("burnish.backends.modules.pretrain", lambda *_, **__: pytest.fail("pretrained again"))
        cut = run(resume=tmp_path / "cut")
        assert [comparable(row) for row in cut.metrics] == [comparable(row) for row in whole.metrics]
        assert whole.metrics[-1]["kl"] > 0, "the reference is not what is trained"
        for name in ("model/model.safetensors", "start/model.safetensors", "model/vocabulary.json", "evaluation.json"):
            assert (cut.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes(), name
        assert (whole.run_dir / "model/model.safetensors").read_bytes() != (
            whole.run_dir / "start/model.safetensors"
        ).read_bytes()
        html = whole.report.read_text(encoding="utf-8")
        assert re.search(r"<dt>model</dt>\s*<dd>lstm</dd>", html), "the name of a model that was never loaded"

    def test_a_run_generates_and_another_starts_from_it(self, tmp_path):
        run = api.train(
            "toy", overrides=self.OVERRIDES, steps=1, run_dir=tmp_path / "one", observer=make_observer(quiet=True)
        )
        options = {"sampling": SamplingParams(4), "observer": make_observer(quiet=True)}
        first, second = (api.generate(str(run.run_dir), "我", samples=2, **options) for _ in range(2))
        assert [c.text for c in first] == [c.text for c in second]
        assert all(set(c.text) <= set("我爱你。\ufffd") for c in first)
        recipe = load_recipe("toy", ["policy.use=lstm", f"policy.weights={run.run_dir / 'model'}"])
        policy, _ = build_module_policy(recipe.policy, 7, texts=None)
        assert policy.module.recurrent.hidden_size == 16
        saved = load_file(run.run_dir / "model" / "model.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in policy.trainable().items())

    def test_a_run_that_could_not_begin_leaves_nothing(self, tmp_path):
        # The start is made, and only then is it seen that a prompt has no token to begin with.
        (tmp_path / "v.json").write_text('{"kind": "character", "tokens": ["a", "b"]}')
        overrides = ["policy.use=lstm", f"policy.vocabulary={tmp_path / 'v.json'}", "policy.pretrain={steps=1}"]
        with pytest.raises(InputError, match="no token for '我'"):
            api.train(
                "toy", overrides=overrides, run_dir=tmp_path / "run", observer=make_observer(quiet=True)
            )  # fmt: skip
        assert not (tmp_path / "run").exists()
