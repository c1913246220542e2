"""Rewards for what a text says and how it sounds: values by hand, Chinese beside English, and the texts that game them.

Those that need a package are left out, and say so, where it is not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import pytest
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.errors import InputError
from burnish.rewards.library import grammar as grammars
from burnish.rewards.library import similarity as meaning
from burnish.rewards.library import tone
from burnish.rewards.library.grammar import grammar
from burnish.rewards.library.information import informativeness, readability
from burnish.rewards.library.keywords import keywords, rouge_l
from burnish.rewards.library.overlap import bleu, ter, tokenizer_for
from burnish.rewards.library.similarity import similarity
from burnish.rewards.library.tone import attractiveness, sentiment, toxicity
from burnish.rewards.registry import REWARDS
from burnish.types import Completion, FinishReason, Message, Prompt

ODD_TEXTS = [
    "",
    " \n\t",
    "½ ² ①",
    "\x00\ufffd",
    "😀👩‍👩‍👧🇨🇭",
    "?!...;;",
    "a" * 3000,
    "la " * 1000,
    "我爱你。" * 50,
    "《》",
    "ＡＢ１２",
]


def installed(module: str, extra: str) -> Any:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"pip install 'burnish[{extra}]'")


def has(package: str) -> bool:
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


needs_vader, needs_snownlp = installed("vaderSentiment", "sentiment"), installed("snownlp", "sentiment")
needs_harper, needs_glin = installed("harper", "grammar"), installed("glin_profanity", "toxicity")
needs_minilm = pytest.mark.skipif(not has(meaning.PACKAGE), reason="pip install 'burnish[similarity]'")


def answer(
    text: str, reference: str | None = "true", prompt: str = "", finish: FinishReason = "stop", chat: bool = False
) -> Completion:
    messages = (Message("user", prompt),) if chat else ()
    return Completion(Prompt("p", prompt, reference, {}, messages), (), (), text, (), finish)


# Information --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        # Content words police, arrested, men; names and numbers sydney, 12. All words and no name: (1 + 0) / 2.
        ("Police arrested men.", "Police in Sydney arrested 12 men.", 0.5),
        ("police arrested 12 men in SYDNEY", "Police in Sydney arrested 12 men.", 1.0),
        # Two of three words, one of two names.
        ("Twelve men were arrested in Sydney.", "Police in Sydney arrested 12 men.", (2 / 3 + 1 / 2) / 2),
        ("", "Police in Sydney arrested 12 men.", 0.0),
        ("of the and in", "Police in Sydney arrested 12 men.", 0.0),
        # A number is one however its thousands are set off, and no other is.
        ("1200", "1,200", 1.0),
        ("12", "1,200", 0.0),
        ("3.5", "3.5", 1.0),
        # Capitals are no function word: WHO is not who.
        ("who said so", "The WHO said so.", 0.0),
        ("the WHO", "The WHO said so.", 1.0),
        # Chinese: 北京, 京下, 下雪; with 的 between them no pair.
        ("北京", "北京下雪", 1 / 3),
        ("北京的雪", "北京的雪", 1.0),
        ("北京下雪了，气温１２度。", "北京下雪12度", 1.0),
        # 《红楼梦》 and GPT are names; of the pairs 红楼, 楼梦, 读红 ... only the two within the title are said.
        ("《红楼梦》", "《红楼梦》", 1.0),
        ("gpt", "热爱GPT", 0.5),
    ],
)
def test_informativeness_by_hand(text: str, reference: str, value: float) -> None:
    assert informativeness(answer(text, reference)) == pytest.approx(value)


def test_informativeness_of_a_prompt_and_where_there_is_nothing_to_say() -> None:
    assert informativeness(answer("a lonely fox", None, "Write of a lonely fox."), source="prompt") == pytest.approx(
        2 / 3
    )
    with pytest.raises(InputError, match="needs a reference"):
        informativeness(answer("x", None))
    with pytest.raises(InputError, match="prompt of prompt 'p' has no content word"):
        informativeness(answer("x", None, "and so it is"), source="prompt")
    with pytest.raises(InputError, match=r"unknown source = 'prompts' \(did you mean 'prompt'"):
        REWARDS.get("informativeness").check_options({"source": "prompts"})


def test_a_bare_list_of_words_games_informativeness() -> None:
    reference = "Police in Sydney arrested 12 men."
    assert informativeness(answer("men 12 arrested Sydney police", reference)) == 1.0


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        # 4.71 * 9 / 3 + 0.5 * 3 / 1 - 21.43
        ("The cat sat.", -5.8),
        # Two sentences: 4.71 * 18 / 6 + 0.5 * 6 / 2 - 21.43. The end of the text ends one.
        ("The cat sat. The cat sat", -5.8),
        # The point of a number ends none: letters 2 + 4 + 2 (3.5 is two words of one digit).
        ("It rose 3.5", 4.71 * 8 / 4 + 0.5 * 4 - 21.43),
        # Characters a sentence.
        ("今天天气很好。我们去公园。", 5.5),
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_readability_by_hand(text: str, grade: float) -> None:
    assert readability(text, form="grade") == pytest.approx(grade)


def test_readability_as_a_reward() -> None:
    assert readability("The cat sat.", grade=-10.0) == pytest.approx(1 - (-5.8 + 10) / 8)
    assert readability("The cat sat.") == 1.0
    assert readability("Interdepartmental reorganisation notwithstanding considerable opposition") == 0.0
    assert readability("今天天气很好。我们去公园。", characters=3) == pytest.approx((9 - 5.5) / 6)
    assert readability("长" * 200) == 0.0 and readability("") == 0.0
    with pytest.raises(InputError, match="above 0"):
        REWARDS.get("readability").check_options({"spread": 0.0})


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_ranges_of_what_needs_no_package(text: str) -> None:
    assert 0.0 <= informativeness(answer(text)) <= 1.0
    assert 0.0 <= readability(text) <= 1.0


@needs_harper
@needs_glin
@needs_vader
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_ranges_of_what_needs_a_package(text: str) -> None:
    assert 0.0 <= grammar(answer(text)) <= 1.0
    assert 0.0 < toxicity(text) <= 1.0
    assert -1.0 <= sentiment(text, language="en") <= 1.0


# Grammar ------------------------------------------------------------------------------------------------------------


@needs_harper
def test_grammar_by_hand() -> None:
    # One error in six words, at most one in two: 1 - (1/6) / (1/2).
    assert grammar(answer("She go to school every day."), worst=0.5) == pytest.approx(2 / 3)
    assert grammar(answer("She goes to school every day.")) == 1.0
    assert grammar(answer("我爱你。")) == 0.0 == grammar(answer(""))
    # A name is in no list; a word of small letters that is in none is wrong.
    assert grammar(answer("Mr Zorbit met the mayor.")) == 1.0
    assert grammar(answer("Then zorbit glarp blee.")) == 0.0
    assert grammar(answer("Then zorbit glarp blee."), spelling=False) == 1.0
    assert grammar(answer("The colour is red.")) < grammar(answer("The colour is red."), dialect="british") == 1.0
    # Flawless nonsense.
    assert grammar(answer("The moon ate Tuesday.")) == 1.0


@needs_harper
def test_grammar_of_a_continuation() -> None:
    # What is wrong in the prompt is not the text's fault, and a text may begin in the middle of a sentence.
    assert grammar(answer(" of the day said nothing.", prompt="The goverment")) == 1.0
    # Cut off within a word, which is then no misspelling.
    assert grammar(answer(" spoke on Friday about the econo", prompt="The man", finish="length")) == 1.0
    assert grammar(answer(" spoke on Friday about the econo", prompt="The man")) < 1.0
    # After a chat template the prompt is no part of the text. One error in four words.
    assert grammar(answer("She go to school.", prompt="They say that", chat=True), worst=1.0) == 0.75


# Tone ---------------------------------------------------------------------------------------------------------------


@needs_vader
def test_sentiment_in_english() -> None:
    assert sentiment("I love it!") > 0.5 > 0.0 > -0.5 > sentiment("I hate it.")
    assert sentiment("It is not good.") < 0.0 == sentiment("The table has four legs.") == sentiment("  ")
    # Gamed by saying one word over and over.
    assert sentiment("good " * 100) > 0.99


@needs_snownlp
@needs_vader
@pytest.mark.slow
def test_sentiment_in_chinese() -> None:
    assert sentiment("这部电影太好看了，我非常喜欢") > 0.5 > 0.0 > -0.5 > sentiment("质量太差了，非常失望")
    assert abs(sentiment("桌子有四条腿。")) < 0.3
    # Half of the words decide; a language may be said.
    assert sentiment("这部电影太好看了 OK") > 0.3
    assert sentiment("我爱你", language="en") == 0.0


@needs_vader
def test_attractiveness_by_hand() -> None:
    # love 3.2, hate -2.7; four words: (3.2 + 2.7) / 4 / 4 a word, over a strong word's 0.5.
    assert attractiveness("Love and hate, mostly.", strong=0.5) == pytest.approx((3.2 + 2.7) / 4 / 4 / 0.5)
    # The same word again adds nothing, and dilutes.
    assert attractiveness("love love love love", strong=0.5) == pytest.approx(3.2 / 4 / 4 / 0.5)
    assert attractiveness("The committee met on Tuesday.") == attractiveness("") == attractiveness("...") == 0.0
    assert attractiveness("What a lovely, brave, heartbreaking, terrible, amazing story!") == 1.0
    with pytest.raises(InputError, match="strong = 0"):
        attractiveness("x", strong=0)
    with pytest.raises(InputError, match="unknown language = 'french'; known: auto, en, zh"):
        attractiveness("x", language="french")


@needs_snownlp
def test_attractiveness_in_chinese_is_the_mean_over_sentences() -> None:
    stirring, plain = "这个故事太感人了，我哭了！", "委员会周二开会。"
    assert 1.0 >= attractiveness(stirring) > attractiveness(plain) >= 0.0
    both = (attractiveness(stirring) + attractiveness(plain)) / 2
    assert attractiveness(stirring + plain) == pytest.approx(both)
    assert attractiveness("。！", language="zh") == 0.0


@needs_glin
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", 0), ("", 0), ("you shit, you fucking fool", 2), ("sh1t", 1), ("Scunthorpe assassin", 0),
        ("sex education and a rape trial", 0),
        # 操你妈 is one, though three entries of the list lie within it.
        ("操你妈", 1), ("操你妈，你这个傻逼", 2), ("干部操作机器，成人教育充满激情", 0), ("性别平等", 0),
    ],
)  # fmt: skip
def test_toxicity_counts_words(text: str, words: int) -> None:
    assert toxicity(text) == 1 / (1 + words)


@needs_glin
def test_toxicity_ignores_what_it_is_told_to_and_does_not_see_clean_malice() -> None:
    assert toxicity("shit happens", ignore=["shit"]) == 1.0
    assert toxicity("I will find you and you will be sorry.") == 1.0


# Meaning ------------------------------------------------------------------------------------------------------------


@needs_minilm
@pytest.mark.slow
def test_similarity_orders_meanings() -> None:
    reference = "The storm killed many people on the coast."
    texts = [reference, "A hurricane left many dead by the sea.", "The recipe needs two eggs.", "", "x\ud83d"]
    same, near, far, empty, _ = similarity([answer(text, reference) for text in texts])
    assert same == pytest.approx(1.0) and same > near > 0.4 > 0.2 > far and empty == 0.0
    # Neither company nor order changes a value beyond rounding.
    assert similarity([answer(texts[1], reference)]) == pytest.approx([near], abs=1e-5)
    with pytest.raises(InputError, match="no folder of a Hugging Face model"):
        similarity([answer("x")], model="/nowhere")


# Packages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "extra", "run"),
    [
        ("harper", "grammar", lambda: grammar(answer("A text."))),
        ("vaderSentiment.vaderSentiment", "sentiment", lambda: sentiment("A text.")),
        ("vaderSentiment.vaderSentiment", "sentiment", lambda: attractiveness("A text.")),
        ("snownlp.sentiment", "sentiment", lambda: sentiment("我爱你")),
        ("glin_profanity", "toxicity", lambda: toxicity("A text.")),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(module, extra, run, monkeypatch) -> None:
    for cached in (grammars._linter, tone._analyzer, tone._snownlp, tone._profanity):
        cached.cache_clear()
    root = module.partition(".")[0]
    for name in [name for name in sys.modules if name == root or name.startswith(f"{root}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, root, None)
    with pytest.raises(InputError, match=rf"needs a package that is not installed: pip install 'burnish\[{extra}\]'"):
        run()


def test_a_missing_model_is_too(monkeypatch) -> None:
    meaning._model.cache_clear()
    monkeypatch.setattr(meaning, "PACKAGE", "there-is-no-such-package")
    with pytest.raises(InputError, match=r"pip install 'burnish\[similarity\]'"):
        similarity([answer("A text.")])


# Chinese in the rewards that compare words ----------------------------------------------------------------------------


def test_chinese_needs_no_setting() -> None:
    # BLEU: 2 of 3 characters, 1 of 2 pairs, 0 of 1 triple (smoothed to 1/2): (2/3 * 1/2 * 1/2) ** (1/3).
    assert bleu(answer("我爱你", "我爱她")) == bleu(answer("我爱你", "我爱她"), tokenize="zh") > 0.4
    assert ter(answer("我爱你", "我爱她")) == pytest.approx(2 / 3)
    assert bleu(answer("the cat", "the dog")) == bleu(answer("the cat", "the dog"), tokenize="13a")
    # Full-width digits and letters are the same as others.
    assert rouge_l(answer("１２人", "12人")) == 1.0 == keywords(answer("ＡＢＣＤ", "abcd"))


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (["我爱你。"], "zh"), (["我爱 GPT 和 BERT"], "zh"), (["I love 你"], "13a"), (["これは猫です"], "char"),
        (["hello"], "13a"),
        ([], "13a"), ([""], "13a"), (["123"], "13a"), (["我爱你", "hello", "你好"], "zh"), (["我爱你", "hello"], "13a"),
        (["나는 너를 사랑해"], "13a"),
    ],
)  # fmt: skip
def test_which_tokenizer_fits(references: list[str], tokenizer: str) -> None:
    assert tokenizer_for(references) == tokenizer


def test_tried_from_the_command_line() -> None:
    command = ["score", "今天天气很好。", "--use", "readability", "--set", "readability.form=grade", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "6.0" in result.stdout
