"""Preference losses of chats and texts against formulas computed apart from burnish: plain logits, and Python's math."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from burnish.data.rows import ConversationPair, LabelledConversation, PreferencePair
from burnish.policies.chat_template import ChatTemplate
from burnish.policies.loading import load_policy
from burnish.policies.reward_model import HEAD, RewardModel, load_reward_model
from burnish.supervised.bradley_terry import BradleyTerry
from burnish.supervised.dpo import PairPreference
from burnish.supervised.encoding import Encoded, Encoder
from burnish.supervised.kto import KTO
from burnish.supervised.recipe import Preference
from burnish.training.batching import TokenBudget
from burnish.types import Completion, Message, Prompt

BUDGET = TokenBudget(10_000, 10_000)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def said(*turns: tuple[Any, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


BEGIN = said(("system", "short"), ("user", "one"), ("assistant", "won"), ("user", "two"))
ROWS = [
    ConversationPair(BEGIN, said(("assistant", "too")), said(("assistant", "three and more")), "1"),
    ConversationPair(
        said(("user", "a")),
        said(("assistant", "b"), ("user", "c"), ("assistant", "dee")),
        said(("assistant", "x")),
        "2",
    ),
    PreferencePair("Shares", " fell after", " sang on the way home", "3"),
]


@pytest.fixture(scope="module")
def policy(tiny):
    loaded = load_policy(tiny("gpt2"), dtype="float64")  # computes in float64 throughout
    loaded.tokenizer.chat_template = TEMPLATE
    loaded.chat = ChatTemplate(loaded.tokenizer)
    initial = copy.deepcopy(loaded.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    loaded.initial = initial
    return loaded


def plain_logprobs(model: Any, prompt_ids: Any, token_ids: Any) -> list[float]:
    """Return each token's log-probability by one unpadded forward pass of transformers alone."""
    ids = torch.tensor([[*prompt_ids, *token_ids]])
    with torch.no_grad():
        table = model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = len(prompt_ids)
    return [float(table[start + index - 1, token]) for index, token in enumerate(token_ids)]


def likelihood(policy: Any, text: Encoded, *, relative: bool) -> tuple[float, int]:
    """Return the sum over an answer's own tokens, and their number."""
    values = plain_logprobs(policy.model, text.prompt_ids, text.token_ids)
    first = plain_logprobs(policy.initial, text.prompt_ids, text.token_ids) if relative else [0.0] * len(values)
    own = [a - b for a, b, flag in zip(values, first, text.learnt, strict=True) if flag]
    return sum(own), len(own)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def expected(use: str, policy: Any, texts: tuple[Encoded, ...], settings: Preference) -> float:
    relative = use in ("dpo", "ipo")
    (c, n), (r, m) = (likelihood(policy, text, relative=relative) for text in texts)
    (mean, count) = likelihood(policy, texts[0], relative=False)
    nll = -mean / count
    if settings.length_normalised:
        c, r = c / n, r / m
    e, beta = settings.label_smoothing, settings.beta
    if use in ("dpo", "cpo"):
        z = beta * (c - r)
        loss = -(1 - e) * math.log(sigmoid(z)) - e * math.log(sigmoid(-z))
    elif use == "ipo":
        loss = (c - r - 1 / (2 * beta)) ** 2
    elif use == "simpo":
        z = beta * c - beta * r - settings.margin
        loss = -(1 - e) * math.log(sigmoid(z)) - e * math.log(sigmoid(-z))
    else:
        odds = [math.exp(x) / (1 - math.exp(x)) for x in (c, r)]
        loss = -beta * math.log(sigmoid(math.log(odds[0] / odds[1])))
    return loss + settings.supervised_weight * nll


FORMS: list[dict[str, Any]] = [
    {"use": "dpo"},
    {"use": "dpo", "beta": 0.5, "label_smoothing": 0.2, "supervised_weight": 0.7},
    {"use": "dpo", "length_normalised": True},
    {"use": "ipo", "beta": 0.3},
    {"use": "ipo", "length_normalised": True},
    {"use": "simpo"},
    {"use": "simpo", "beta": 1.5, "margin": 0.3, "label_smoothing": 0.1},
    {"use": "orpo"},
    {"use": "orpo", "beta": 0.4, "supervised_weight": 0.5},
    {"use": "cpo"},
    {"use": "cpo", "beta": 0.3, "supervised_weight": 0.0, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("form", FORMS, ids=[" ".join(map(str, form.values())) for form in FORMS])
def test_a_pair_loss_equals_its_formula(policy, form: dict[str, Any]) -> None:
    settings = Preference(**form)
    objective, encoder = PairPreference(settings), Encoder(policy, 256)
    examples = [example for row in ROWS for example in objective.examples(encoder, row)]
    losses = [expected(form["use"], policy, example.texts, settings) for example in examples]
    assert objective.backward(policy, examples, BUDGET)["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    one_by_one = objective.backward(policy, examples, TokenBudget(1, 1))["loss"]
    assert one_by_one == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    policy.model.zero_grad()


def test_kto_of_chats_equals_its_formula(policy) -> None:
    rows = [
        LabelledConversation(BEGIN, said(("assistant", "too")), True, "1"),
        LabelledConversation(said(("user", "a")), said(("assistant", "b c")), False, "2"),
        LabelledConversation(said(("user", "dee")), said(("assistant", "e")), True, "3"),
    ]
    objective, encoder = KTO(0.3, 1.2, 0.8), Encoder(policy, 256)
    texts = [objective.examples(encoder, row)[0].texts[0] for row in rows]
    # z0: each prompt with the next one's answer.
    ratios = []
    for text, other in zip(texts, [*texts[1:], texts[0]], strict=True):
        now, first = (plain_logprobs(m, text.prompt_ids, other.token_ids) for m in (policy.model, policy.initial))
        ratios.append(sum(now) - sum(first))
    point = max(0.0, sum(ratios) / 3)
    total = 0.0
    for row, text in zip(rows, texts, strict=True):
        ratio, _ = likelihood(policy, text, relative=True)
        gain = 0.3 * (ratio - point)
        total += 1.2 * (1 - sigmoid(gain)) if row.desirable else 0.8 * (1 - sigmoid(-gain))
    examples = [example for row in rows for example in objective.examples(encoder, row)]
    assert objective.backward(policy, examples, BUDGET)["loss"] == pytest.approx(total / 3, abs=1e-6)
    policy.model.zero_grad()


def test_only_the_assistant_s_messages_of_an_answer_are_learnt(policy) -> None:
    (example,) = PairPreference(Preference()).examples(Encoder(policy, 256), ROWS[1])
    chosen = example.texts[0]
    learnt = [token for token, flag in zip(chosen.token_ids, chosen.learnt, strict=True) if flag]
    assert policy.tokenizer.decode(learnt) == "b<|end|>dee<|end|>"
    assert policy.tokenizer.decode(chosen.prompt_ids) == "user: a<|end|>\nassistant: "
    assert policy.tokenizer.decode(chosen.token_ids) == "b<|end|>\nuser: c<|end|>\nassistant: dee<|end|>"


@pytest.mark.parametrize("reads", ["chat", "text"])
def test_a_reward_model_reads_prompts_as_it_learnt_them(policy, tmp_path, reads: str) -> None:
    model, objective = RewardModel(policy, 256), BradleyTerry()
    row = ConversationPair(said(("user", "a")), said(("assistant", "b")), said(("assistant", "c")), "1")
    texts = objective.examples(Encoder(policy, 256), row if reads == "chat" else PreferencePair("a", "b", "c", "1"))[
        0
    ].texts
    objective.prepare(model, Encoder(policy, 256))
    assert model.reads == reads
    with torch.no_grad():
        model.head.copy_(torch.linspace(-1, 1, len(model.head)))
        trained = [float(score) for score in model.scores([text.completion() for text in texts])]
    asked = Prompt("p", "a", messages=said(("user", "a")))
    for prompt in (asked, Prompt("p", "a")):
        answers = [Completion(prompt, (), (), text, (), "stop") for text in "bc"]
        assert model.score_texts(answers) == pytest.approx(trained, abs=1e-12)
    if reads == "text":
        with pytest.raises(Exception, match="conversation of several messages, and this reward model reads plain text"):
            model.score_texts([Completion(Prompt("p", "two", messages=BEGIN), (), (), "b", (), "stop")])
    model.save(tmp_path)
    assert (tmp_path / HEAD).is_file() and load_reward_model(str(tmp_path)).reads == reads
