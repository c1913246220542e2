"""The translation task: both directions and fine-tuning share one split; help pages are aligned by file and id."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.data.rows import Conversation, PromptCompletion
from burnish.errors import InputError
from burnish.supervised import sources
from burnish.supervised.dataset import split_rows
from burnish.tasks import translation
from burnish.tasks.translation import Translation, help_pairs, paragraphs


@pytest.fixture
def sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty sentences in the catalogue's form; every tenth has the English of the one before."""
    import json

    rows = [
        {"chinese": f" 第{n}句话。", "translation": {"en": f"This is sentence {n - (n % 10 == 9)}."}} for n in range(60)
    ]
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(translation, "fetch", lambda name, **_: {"sentences.json": path})


@pytest.mark.usefixtures("sentences")
def test_both_directions_and_fine_tuning_hold_out_the_same() -> None:
    there, back = Translation(), Translation(source="en", target="zh")
    held = {prompt.metadata["source"] for prompt in there.evaluation()}
    assert held == {prompt.reference for prompt in back.evaluation()}
    # Two Chinese sentences with one English translation share a side.
    english = [{p.reference for p in side} for side in (there.train(), there.evaluation())]
    assert english[0] and english[1] and not english[0] & english[1]
    _, rows = split_rows(sources.TranslationRows().rows().rows, 25)
    assert {row.prompt for row in rows if isinstance(row, PromptCompletion)} == {
        prompt.text for prompt in there.evaluation()
    }
    assert there.train()[0].text.endswith("。\nEnglish:") and there.train()[0].messages == ()


@pytest.mark.usefixtures("sentences")
def test_chat_rows_are_conversations() -> None:
    (row, *_), task = sources.TranslationRows(chat=True).rows().rows, Translation(chat=True)
    assert isinstance(row, Conversation) and [message.role for message in row.messages] == ["user", "assistant"]
    assert task.train()[0].messages[0].content == task.train()[0].text


def page(folder: Path, language: str, name: str, body: str) -> None:
    path = folder / language / "text" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<html><body>{body}</body></html>", encoding="utf-8")


def test_help_pages_are_aligned_by_file_and_id(tmp_path: Path) -> None:
    page(
        tmp_path, "en-US", "a.html",
        '<p id="par_1">Save &amp; <span class="x">close</span>\n now.</p><p id="par_2">Same</p><p id="par_3">Only here</p>'
        '<p id="bm_1">No paragraph</p><p id="par_4">Save &amp; close now.</p><p>none</p>',
    )  # fmt: skip
    page(
        tmp_path, "de", "a.html",
        '<p id="par_4">Noch einmal</p><p id="par_1">Jetzt speichern.</p><p id="par_2">Same</p><p id="bm_1">Kein Absatz</p>',
    )  # fmt: skip
    page(tmp_path, "en-US", "b.html", '<p id="par_1">Alone</p>')
    # The fourth repeats the English of the first, the second is not translated, and b.html has no German page.
    assert help_pairs(tmp_path, "en", "de") == [("Save & close now.", "Jetzt speichern.")]
    with pytest.raises(InputError, match=r"no help in French.*libreoffice-help-fr"):
        help_pairs(tmp_path, "en", "fr")
    (tmp_path / "de" / "text" / "a.html").write_bytes(b"<p id='par_1'>\xff</p>")
    with pytest.raises(InputError, match=r"a\.html cannot be read"):
        help_pairs(tmp_path, "en", "de")


def test_an_unclosed_page_is_read_up_to_its_last_whole_paragraph(tmp_path: Path) -> None:
    page(tmp_path, "de", "a.html", '<p id="par_1">ganz</p><p id="par_2">halb')
    assert paragraphs(tmp_path / "de" / "text" / "a.html") == {"par_1": "ganz"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "hks"}, r"data = 'hks' \(did you mean 'hsk'"),
        ({"target": "de"}, "'hsk' has en, zh; name two"),
        ({"target": "zh"}, "name two of them"),
        ({"template": "Translate."}, "must contain {text}"),
        ({"template": "{text} {langauge}"}, "only {text}, {source} and {target}"),
        ({"template": "{text} {text.x}"}, "only {text}"),
        ({"min_words": 9, "max_words": 3}, "min_words = 9, max_words = 3"),
        (
            {"data": "libreoffice", "source": "en", "target": "de", "folder": "/nowhere"},
            "apt-get install libreoffice-help",
        ),
    ],
)
def test_bad_options_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Translation(**options).train()  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        sources.TranslationRows(**options).rows()  # type: ignore[arg-type]
