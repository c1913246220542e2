"""The content filter: verdicts, spans in the original text, disguised spellings, and the policy."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.errors import BurnishError, ContractError, InputError
from burnish.safety.filter.content_filter import ContentFilter
from burnish.safety.filter.lexicon import CLEAR, terms
from burnish.safety.filter.normalise import LOOK_ALIKES, fold

WORD = "bollocks"
"""The mild word of the list that stands for all others here."""


@pytest.fixture(scope="module")
def default() -> ContentFilter:
    return ContentFilter()


def found(content_filter: ContentFilter, text: str) -> list[tuple[str, str]]:
    """Category and original text of each finding."""
    return [(one.category, text[one.start : one.end]) for one in content_filter.check(text).findings]


@pytest.mark.parametrize(
    "spelling",
    [
        WORD, WORD.upper(), "Bollocks", "ｂｏｌｌｏｃｋｓ", "𝐛𝐨𝐥𝐥𝐨𝐜𝐤𝐬", "ⓑⓞⓛⓛⓞⓒⓚⓢ", "🅱🅾🅻🅻🅾🅲🅺🆂",
        "bоllосks", "βollοcκs", "bó̈llöçks",
        "bol\u200blocks", "bol\u00adlo\u2060cks", "b\ufe0follocks", "b0llocks", "bo11ock$", "b o l l o c k s",
        "b.o.l.l.o.c.k.s", "b-0-l-l-0-c-k-s", "bol-locks", "bolllllooocks", "b*llocks", "b\u3164ollocks", "bo\u0000llocks",
    ],
)  # fmt: skip
def test_a_disguised_word_is_found_where_it_is(default: ContentFilter, spelling: str) -> None:
    text = f"Straße ﬁne 你好, {spelling}, indeed."
    assert found(default, text) == [("profanity", spelling)]


def test_every_clear_word_of_the_lists_is_found_alone_and_in_full_width(default: ContentFilter) -> None:
    for term in terms():
        wide = "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in term.text)
        if term.score == CLEAR:
            for text in (term.text, f"… {term.text} …", wide):
                assert term.category in default.check(text).categories, term.category


def test_ambiguous_words_count_only_below_the_default_threshold(default: ContentFilter) -> None:
    assert default.check("The hoe is in the shed.").verdict == "allow"
    strict = ContentFilter({"categories": {"profanity": {"threshold": 0.3}}})
    assert found(strict, "The hoe is in the shed.") == [("profanity", "hoe")]


@pytest.mark.parametrize(
    ("text", "category", "span"),
    [
        ("王八蛋！", "profanity", "王八蛋"), ("他說傻屄了", "profanity", "屄"), ("王*八*蛋", "profanity", "王*八*蛋"),
        ("王 八 蛋", "profanity", "王 八 蛋"), ("靠，媽的！", "profanity", "媽的"), ("死全家", "violence", "死全家"),
        ("我要弄死你", "violence", "弄死你"), ("Wangbadan!", "profanity", "Wangbadan"),
    ],
)  # fmt: skip
def test_chinese_is_found_without_word_boundaries(default: ContentFilter, text: str, category: str, span: str) -> None:
    assert found(default, text) == [(category, span)]


@given(st.text(alphabet=st.characters(), max_size=60))
def test_spans_are_of_the_original_text(text: str) -> None:
    folded = fold(text)
    for index in range(len(folded.text)):
        start, end = folded.span(index, index + 1)
        assert 0 <= start < end <= len(text)
        assert folded.text[index] in fold(text[start:end]).text or not folded.text.isascii()


def test_letters_that_change_the_length_keep_the_span(default: ContentFilter) -> None:
    text = "ßßß ﬁﬁ İİ ŉ bollocks \U0001f1e9"
    assert found(default, text) == [("profanity", "bollocks")]
    assert default.redact(text) == "ßßß ﬁﬁ İİ ŉ [profanity] \U0001f1e9"


def test_look_alikes_are_single_letters_and_lead_to_ascii() -> None:
    assert all(len(key) == 1 and not key.isascii() and value.isascii() for key, value in LOOK_ALIKES.items())


@pytest.mark.parametrize("scale", [4000])
@pytest.mark.parametrize(
    "unit",
    [
        "(",
        "[{",
        "@",
        "a@a.",
        "1-",
        "1 ",
        "a.",
        "a ",
        "a-",
        "eyJ",
        "sk-",
        "王*",
        "王 ",
        "王b",
        "wang2 ",
        "wang2ba1",
        "bollocks ",
        "f*",
        "\u0301",
        "\u200b",
        "-----BEGIN ",
    ],
)
def test_the_work_grows_in_proportion_to_the_text(default: ContentFilter, unit: str, scale: int) -> None:
    def seconds(text: str) -> float:
        tries = []
        for _ in range(3):
            begin = time.process_time()
            default.check(text)
            tries.append(time.process_time() - begin)
        return min(tries)

    # Quadratic work would take 16 times as long for four times the text.
    assert seconds(unit * (4 * scale)) < 10 * seconds(unit * scale) + 0.02


def test_empty_and_strange_texts(default: ContentFilter) -> None:
    for text in ("", " ", "\x00", "\ud800", "\u0301", "\u3164", "🖕🏽"[1:], "()" * 10_000):
        assert default.check(text).verdict == "allow"
    assert default.check("\ud800bollocks\udfff").verdict == "flag"
    assert default.check("漢語\ud800書").verdict == "allow"  # traditional, so that it is converted
    assert default.check("漢語\ud800 bollocks").verdict == "flag"


class TestPolicy:
    def test_actions_thresholds_words_and_allowed_phrases(self) -> None:
        policy = {
            "allow": ["the dog's bollocks"],
            "categories": {
                "profanity": {"action": "block"},
                "email": {"action": "allow"},
                "rivals": {"words": ["Acme Ltd"]},
            },
        }
        own = ContentFilter(policy)
        assert own.check("the dog’s bollocks".replace("’", "'")).verdict == "allow"
        assert own.check("the dog's bollocks, bollocks").verdict == "block"
        assert own.check("a@example.org").verdict == "allow"
        assert found(own, "by ＡＣＭＥ ltd, and AcmeLtds") == [("rivals", "ＡＣＭＥ ltd")]
        assert own.check("by acme ltd").verdict == "flag"

    def test_the_decisive_finding_is_the_severest(self, default: ContentFilter) -> None:
        verdict = default.check("bollocks, card 4111 1111 1111 1111")
        assert verdict.row() == {
            "verdict": "block", "categories": ["card", "profanity"], "score": 0.95, "layer": "patterns",
            "spans": [
                {"start": 0, "end": 8, "category": "profanity", "score": 0.9, "layer": "words"},
                {"start": 15, "end": 34, "category": "card", "score": 0.95, "layer": "patterns"},
            ],
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("toml", "message"),
        [
            ("[categories.profanty]\naction = 'flag'", "unknown category 'profanty' (did you mean 'profanity'?)"),
            ("[categories.email]\naction = 'blok'", "must be 'allow', 'flag' or 'block' (did you mean 'block'?)"),
            ("[categories.email]\nthreshold = 2", "categories.email.threshold = 2: must be at most 1"),
            ("alow = ['x']", "unknown key 'alow' (did you mean 'allow'?)"),
            ("allow = 'x'", "must be a list, in brackets"),
            ("allow = ['']", "allow.0"),
            ("allow = ['\u200b']", "allow: '\\u200b' has no visible character"),
            ("[categories.own]\nwords = [' ']", "categories.own.words: ' ' has no visible character"),
            ("categories = 3", "categories = 3: must be a table"),
            ("[categories", "not valid TOML"),
            ("[model]\nuse = 'json'", "must be module:object"),
            ("[model]\nuse = 'json:dumbs'", "has no 'dumbs' (did you mean 'dumps'?)"),
        ],
    )
    def test_a_wrong_policy_is_explained(self, toml: str, message: str, tmp_path) -> None:
        (tmp_path / "policy.toml").write_text(toml, encoding="utf-8")
        with pytest.raises(InputError) as error:
            ContentFilter(tmp_path / "policy.toml")
        assert message in str(error.value) and "\n" not in str(error.value)

    def test_a_policy_that_cannot_be_read(self, tmp_path) -> None:
        with pytest.raises(InputError, match="cannot be read: No such file"):
            ContentFilter(tmp_path / "none.toml")
        (tmp_path / "latin.toml").write_bytes(b"allow = ['\xe9']")
        with pytest.raises(InputError, match="not UTF-8 text"):
            ContentFilter(tmp_path / "latin.toml")

    def test_a_model_of_your_own(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "judge_of_the_test.py").write_text(
            "def judge(text):\n    return {'sales': 0.9 if 'buy' in text else 0.1}\n"
            "def wrong(text):\n    return {'sale': 2}\n"
            "def fails(text):\n    return {'sales': 1 / 0}\n"
            "def large(text):\n    return {'sales': float('nan')}\n"
        )
        own = ContentFilter({"model": {"use": "judge_of_the_test:judge", "categories": ["sales"]}})
        assert found(own, "buy now") == [("sales", "buy now")] and own.check("hello").verdict == "allow"
        assert own.check("buy now").row()["layer"] == "model"
        wrong = ContentFilter({"model": {"use": "judge_of_the_test:wrong", "categories": ["sales"]}})
        with pytest.raises(ContractError, match=r"the category 'sale' \(did you mean 'sales'\?\)"):
            wrong.check("hello")
        for name, message in (
            ("fails", "raised ZeroDivisionError: division by zero"),
            ("large", "sales = nan: must be"),
        ):
            other = ContentFilter({"model": {"use": f"judge_of_the_test:{name}", "categories": ["sales"]}})
            with pytest.raises(BurnishError, match=message):
                other.check("hello")
