"""Rewards: values derived by hand, invariants, and texts that were not written by a friend."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from burnish.errors import BurnishError, InputError
from burnish.recipe.sections import RewardSection
from burnish.rewards.combine import Combination, combine
from burnish.rewards.library.diversity import distinct_n, longest_repeat, repeat_share, repetition
from burnish.rewards.library.fluency import COMPLETIONS_AT_ONCE, negative_log_likelihoods, perplexity
from burnish.rewards.library.overlap import bleu, exact
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS, reward_function
from burnish.text import ngrams, words
from burnish.types import Completion, Prompt
from tests.fakes import TokenValueModel

ODD_TEXTS = ["", " \n\t", "½ ² ①", "\x00\ufffd", "naïve café"]
ODD_TEXTS += ["😀👩‍👩‍👧🇨🇭", "?!...;;", "a" * 5000, "la " * 3000, "我爱你。" * 50]


def answer(
    text: str = "x", *, reference: str | None = "true", tokens: tuple[int, ...] = (1,), id: str = "p1"
) -> Completion:
    prompt = Prompt(id, "prompt", reference=reference)
    return Completion(prompt, (0,), tokens, text, tuple(0.0 for _ in tokens), "stop")


# BLEU ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference", "tokenize", "value"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", "13a", 1.0),
        # Precisions 3/3, 2/2, 1/1 and no 4-gram at all; brevity penalty exp(1 - 6/3).
        ("the cat sat", "the cat sat on the mat", "13a", math.exp(-1)),
        # Precisions 1/2 and 0/1, the zero smoothed to 1/(2*1): sqrt(1/2 * 1/2).
        ("the dog", "the cat", "13a", 0.5),
        # Characters: 2/3, 1/2, 0/1 smoothed to 1/2; cube root of 1/6.
        ("我爱你", "我爱她", "zh", (1 / 6) ** (1 / 3)),
        # Without the Chinese tokenizer that is one wrong word.
        ("我爱你", "我爱她", "13a", 0.0),
        ("", "the cat", "13a", 0.0),
        ("😀", "the cat", "13a", 0.0),
    ],
)
def test_bleu_by_hand(text: str, reference: str, tokenize: str, value: float) -> None:
    assert bleu(answer(text, reference=reference), tokenize=tokenize) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_bleu_stays_in_its_range(text: str) -> None:
    assert 0.0 <= bleu(answer(text, reference="la la naïve 😀")) <= 1.0
    assert 0.0 <= bleu(answer("la la naïve 😀", reference=text or "x") if text.strip() else answer("x")) <= 1.0


@pytest.mark.parametrize("function", [bleu, exact])
@pytest.mark.parametrize("reference", [None, "", "  "])
def test_a_missing_reference_is_named(function, reference) -> None:
    with pytest.raises(InputError, match=r"prompt 'article-7' has none: .*reference"):
        function(answer(reference=reference, id="article-7"))


def test_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown tokenize = '13b' \(did you mean '13a'\?\); known: .*zh"):
        bleu(answer(), tokenize="13b")


@pytest.mark.parametrize(
    ("text", "value"), [("我爱你。", 1.0), (" 我爱你。\n", 1.0), ("我爱你", 0.0), ("我 爱你。", 0.0), ("", 0.0)]
)
def test_exact(text: str, value: float) -> None:
    assert exact(answer(text, reference="我爱你。 ")) == value


# Perplexity ---------------------------------------------------------------------------------------------------------


def test_perplexity_by_hand() -> None:
    # Mean NLL (1 + 2 + 3) / 3 = 2.
    completions = [answer(tokens=(1, 2, 3)), answer(tokens=(0, 0)), answer(tokens=(50,))]
    assert perplexity(completions, TokenValueModel(), form="raw") == pytest.approx([-math.exp(2), -1.0, -math.exp(50)])
    assert perplexity(completions, TokenValueModel()) == pytest.approx([1 - 2 / math.log(1000), 1.0, 0.0])
    assert perplexity(completions, TokenValueModel(), worst=math.exp(4)) == pytest.approx([0.5, 1.0, 0.0])


def test_no_token_counts_as_the_worst() -> None:
    assert perplexity([answer("", tokens=())], TokenValueModel()) == [0.0]
    assert perplexity([answer("", tokens=())], TokenValueModel(), form="raw", worst=20.0) == pytest.approx([-20.0])
    assert perplexity([], TokenValueModel()) == []


def test_chunks_change_nothing_and_bound_the_batch() -> None:
    rng = random.Random(0)
    completions = [answer(tokens=tuple(rng.randrange(9) for _ in range(rng.randrange(7)))) for _ in range(50)]
    sizes: list[int] = []

    class Watching(TokenValueModel):
        def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> torch.Tensor:
            sizes.append(len(completions))
            return super().token_logprobs(completions, temperature)

    assert negative_log_likelihoods(completions, Watching()) == [float(sum(c.token_ids)) for c in completions]
    assert max(sizes) == COMPLETIONS_AT_ONCE and sum(sizes) == sum(bool(c.token_ids) for c in completions) < 50


@pytest.mark.parametrize(
    ("options", "message"),
    [({"form": "lgo"}, "unknown form = 'lgo' .*'log'"), ({"worst": 1.0}, "above 1"), ({"worst": math.nan}, "above 1")],
)
def test_perplexity_refuses(options, message) -> None:
    with pytest.raises(InputError, match=message):
        perplexity([answer()], TokenValueModel(), **options)


def test_a_model_that_loses_tokens_is_caught() -> None:
    class Short(TokenValueModel):
        def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> torch.Tensor:
            return super().token_logprobs(completions)[:-1]

    with pytest.raises(BurnishError, match="Short returned 2 values for 3 tokens"):
        perplexity([answer(tokens=(1, 2, 3))], Short())


# Diversity ----------------------------------------------------------------------------------------------------------


def test_distinct_n_by_hand() -> None:
    # Bigrams: ab, bc | ab: 2 of 3 differ; none crosses the border between the texts.
    assert distinct_n(["abc", "ab"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["abc", "ab"], 1) == pytest.approx(3 / 5)
    assert distinct_n(["abc", "", "z"], 2) == 1.0
    assert distinct_n(["a", ""], 2) == distinct_n([], 1) == 0.0
    with pytest.raises(InputError, match="n = 0"):
        distinct_n(["abc"], 0)


def test_distinct_n_knows_no_order_and_halves_by_duplication() -> None:
    texts = [words("the cat sat on the mat"), words("a dog"), words("我爱你。")]
    for n in (1, 2, 3):
        assert distinct_n(texts, n) == distinct_n(texts[::-1], n)
        assert distinct_n(texts * 2, n) == distinct_n(texts, n) / 2


@pytest.mark.parametrize(
    ("tokens", "length"),
    [("", 0), ("a", 0), ("ab", 0), ("aa", 1), ("abcab", 2), ("aaaa", 3), ("abababab", 6), ("abcdabcd", 4)],
)
def test_longest_repeat_by_hand(tokens: str, length: int) -> None:
    assert longest_repeat(tokens) == length


def test_longest_repeat_against_every_pair() -> None:
    rng = random.Random(0)
    for trial in range(600):
        tokens = "".join(rng.choice("ab" if trial % 2 else "abcde") for _ in range(rng.randrange(16)))
        pairs = [
            size
            for size in range(1, len(tokens))
            for later in range(1, len(tokens) - size + 1)
            for earlier in range(later)
            if tokens[later : later + size] == tokens[earlier : earlier + size]
        ]
        assert longest_repeat(tokens) == max(pairs, default=0), tokens


def test_longest_repeat_of_a_very_long_loop() -> None:
    assert longest_repeat(["la"] * 30_000) == 29_999
    assert repeat_share(["la"] * 30_000) == 1.0
    assert repeat_share(["la"]) == repeat_share([]) == 0.0


@pytest.mark.parametrize(
    ("text", "n", "value"),
    [
        ("one two three four", 2, 1.0),
        # Single words may come again where n = 2: no bigram of "the cat the" does.
        ("the cat the", 2, 1.0),
        # Bigrams ab bc ca ab: r = (4 - 3) / 3; longest repeat 2 of 4.
        ("a b c a b", 2, (1 - 1 / 3) * (1 - 2 / 4)),
        # Bigrams ab ba ab ba ab: r = (5 - 2) / 4; longest repeat "a b a b", 4 of 5.
        ("a b a b a b", 2, (1 - 3 / 4) * (1 - 4 / 5)),
        # Eight words, bigrams of three kinds: r = (7 - 3) / 6; longest repeat 3 of 7.
        ("😀😀😀😀!!!!", 2, (1 - 4 / 6) * (1 - 3 / 7)),
        # Single words: r = (3 - 2) / 2; longest repeat 1 of 2.
        ("the cat the", 1, (1 - 1 / 2) * (1 - 1 / 2)),
        ("la la la la", 2, 0.0),
        ("我我我", 2, 0.0),
        ("", 2, 1.0),
        ("word", 2, 1.0),
        ("two words", 2, 1.0),
    ],
)
def test_repetition_by_hand(text: str, n: int, value: float) -> None:
    assert repetition(text, n=n) == pytest.approx(value)


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_is_one_exactly_where_nothing_repeats(text: str, n: int) -> None:
    value = repetition(text, n=n)
    grams = list(ngrams(words(text), n))
    assert 0.0 <= value <= 1.0
    assert (value == 1.0) == (len(set(grams)) == len(grams))


def test_saying_it_again_costs() -> None:
    text = "the quick brown fox jumps over the lazy dog"
    assert repetition(text) > repetition(f"{text} {text}") > repetition(" ".join([text] * 5)) > 0


# Combination --------------------------------------------------------------------------------------------------------


def test_weighted_sum_by_hand() -> None:
    def length(text: str) -> int:
        return len(text)

    scorer = combine({"exact": 2.0, length: -0.5, "repetition": 0.0})
    scores = scorer.score([answer("true"), answer("a b a b a b")])
    assert scores.parts["exact"].tolist() == [1.0, 0.0]
    assert scores.parts["length"].tolist() == [4.0, 11.0]
    assert scores.parts["repetition"].tolist() == pytest.approx([1.0, 0.05])
    assert scores.total.tolist() == [2.0 - 2.0, -5.5]
    assert scores.weights == {"exact": 2.0, "length": -0.5, "repetition": 0.0}
    assert all(part.dtype == np.float64 for part in [scores.total, *scores.parts.values()])


def test_scores_go_with_their_completions() -> None:
    completions = [answer(text, tokens=(position,)) for position, text in enumerate(["true", "x", "true x", "a a a"])]
    scorer = combine({"exact": 1.0, "bleu": 1.0, "perplexity": 1.0, "repetition": 1.0}, TokenValueModel())
    straight = scorer.score(completions).total
    assert scorer.score(completions[::-1]).total.tolist() == straight[::-1].tolist()
    assert scorer.score(completions * 2).total.tolist() == straight.tolist() * 2


def test_no_completions() -> None:
    scores = combine({"exact": 1.0, "perplexity": 1.0}, TokenValueModel()).score([])
    assert scores.total.shape == (0,) and scores.parts["perplexity"].shape == (0,)


def test_from_recipe_sections() -> None:
    sections = [
        RewardSection(use="bleu", weight=0.5, tokenize="zh"),
        RewardSection(use="perplexity", name="fluency", form="raw"),
    ]
    scores = Combination.from_recipe(sections, TokenValueModel()).score(
        [answer("我爱你", reference="我爱她", tokens=(2,))]
    )
    assert list(scores.parts) == ["bleu", "fluency"]
    assert scores.total[0] == pytest.approx(0.5 * (1 / 6) ** (1 / 3) - math.exp(2))


@pytest.mark.parametrize(
    "value",
    [True, np.float32(1.0), np.int64(1), np.bool_(True), torch.tensor(1.0), torch.tensor([1.0])[0], np.array(1)],
)
def test_every_kind_of_one_is_one(value) -> None:
    part = Part("mine", reward_function("mine", lambda text: value))
    assert Combination([part]).score([answer()]).total.tolist() == [1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"'mine' returned nan \(float\) for prompt 'p9': a reward must be finite"),
        (-math.inf, r"returned -inf \(float\) for prompt 'p9'"),
        (np.float32("nan"), r"for prompt 'p9': a reward must be finite"),
        (None, r"returned None \(NoneType\) for prompt 'p9': a reward must be one number"),
        ("1.0", r"returned '1.0' \(str\) for prompt 'p9': a reward must be one number"),
        (1j, r"returned 1j \(complex\) for prompt 'p9'"),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_what_is_no_finite_number_is_named(value, message, batch) -> None:
    function = (lambda texts: [1.0, value]) if batch else (lambda text: value if text == "bad" else 1.0)
    with pytest.raises(BurnishError, match=message):
        Combination([Part("mine", reward_function("mine", function))]).score([answer(), answer("bad", id="p9")])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "'mine' returned 1 values for 2 completions"),
        ([], "returned 0 values for 2 completions"),
        (1.0, r"'mine' returned 1.0 \(float\): a batch reward must return a list"),
        (None, r"returned None \(NoneType\): a batch reward must return a list"),
        ("ab", r"returned 'ab' \(str\): a batch reward must return a list"),
        ({"a": 1, "b": 2}, r"\(dict\): a batch reward must return a list"),
    ],
)
def test_a_batch_reward_returns_a_list_of_the_right_length(returned, message) -> None:
    with pytest.raises(BurnishError, match=message):
        Combination([Part("mine", reward_function("mine", lambda texts: returned))]).score([answer(), answer()])


def test_a_reward_that_raises_is_named_with_its_prompt() -> None:
    def mine(text: str) -> float:
        return 1 / len(text)

    with pytest.raises(BurnishError, match=r"^reward 'mine' raised ZeroDivisionError: .* on prompt 'p9'$") as caught:
        combine({mine: 1.0}).score([answer("a"), answer("", id="p9")])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def all_at_once(texts: list[str]) -> list[float]:
        raise ValueError("broken")

    with pytest.raises(BurnishError, match=r"raised ValueError: broken on a batch of prompts 'p1' to 'p9'"):
        combine({all_at_once: 1.0}).score([answer("a"), answer("", id="p9")])


def test_an_error_of_burnish_passes_as_it_is() -> None:
    with pytest.raises(InputError, match="prompt 'p1' has none"):
        combine({"bleu": 1.0}).score([answer(reference=None)])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "no reward"),
        ({"blue": 1.0}, r"no reward named 'blue' \(did you mean 'bleu'\?\)"),
        ({"bleu": math.nan}, "weight = nan: must be a finite number"),
        ({"bleu": "1"}, "weight = '1': must be"),
        ({"bleu": True}, "weight = True: must be"),
        ({"exact": 1.0, exact: 1.0}, "two rewards are named 'exact'"),
        ({"perplexity": 1.0}, "'perplexity' needs the reference policy"),
        ({"burnish.rewards.library.overlap:exact": 1.0, "exact": 1.0}, "two rewards are named 'exact'"),
    ],
)
def test_combinations_that_cannot_work(parts, message) -> None:
    with pytest.raises(InputError, match=message):
        combine(parts)


def test_an_unknown_option_is_refused_before_scoring() -> None:
    with pytest.raises(InputError, match=r"no option 'tokenise'.*did you mean 'tokenize'"):
        Combination([Part("bleu", REWARDS.get("bleu"), 1.0, {"tokenise": "zh"})])
