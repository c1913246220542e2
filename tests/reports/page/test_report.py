"""The HTML report: its conclusions, its escaping of model text, and reports of incomplete runs."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from burnish.errors import BurnishError, InputError
from burnish.reports.conclusions import blandness, main_conclusion, other_outcomes
from burnish.reports.page import charts, html, samples
from burnish.reports.page.html import script_json, write_report
from burnish.reports.run_data import RunData, read_run
from tests.reports import synthetic_run

HOSTILE = (
    "<script>alert(1)</script></script><img src=x onerror='a()'>\"'&\u2028{{ 7*7 }}\u202egnp\u202c\x00\x1b[2J\ud83d"
)


class Page(HTMLParser):
    """A parsed page: its elements, scripts, and the text outside script and style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside = ""
        self.feed(source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = f"{tag} {dict(attrs).get('id', '')}"

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        else:
            self.words.append(data)


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch):
    """Replace the chart library, which takes half a second to compress and is tested once."""
    monkeypatch.setattr(html, "_plotly", lambda: "window.Plotly = {}")


@pytest.fixture
def folder(tmp_path):
    return synthetic_run.write_run(tmp_path / "news-run")


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def entry(before, after, low, high, p=0.01, better="higher", n=60):
    return {
        "before": before,
        "after": after,
        "difference": after - before,
        "interval": [low, high],
        "p_value": p,
        "n": n,
        "better": better,
    }


def test_the_page_states_the_conclusions(folder):
    page = page_of(folder)
    evidence = "difference +0.54, 95% interval +0.36 to +0.71, p = 0.001, 60 prompts"
    assert f"Held-out reward rose from −3.54 to −3.00 ({evidence})." in page.text
    assert "Contributions to the change of +0.54 in reward: perplexity +0.51 and bleu +0.03." in page.text
    assert "The text became blander" in page.text and "BLEU and chrF against the true text clearly rose" in page.text
    assert "Other metrics: sample perplexity, BLEU and chrF improved; distinct-2 got worse;" in page.text
    assert "Answers became shorter (44.6 to 43.2 tokens, −3%)" in page.text
    assert "(steps 21, 22)" in page.text
    assert "says nothing about progress" in page.text
    assert "记者昨日从市交通局获悉" in page.text
    assert "Of 60 completions," in page.text
    assert "Missing from this report" not in page.text


def test_the_page_makes_no_request_and_runs_only_its_own_scripts(folder):
    source = write_report(folder).read_text(encoding="utf-8")
    page = Page(source)
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "action", "background", "data"} & set(attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith(("#", "data:")), attributes
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    script = page.scripts["script "]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    packed = gzip.decompress(base64.b64decode(page.scripts["script plotly"]))
    assert f"'sha256-{base64.b64encode(hashlib.sha256(packed).digest()).decode()}'" in policy
    assert "@import" not in source and "url(" not in source


@pytest.mark.slow
def test_the_page_contains_the_real_chart_library_and_stays_small(folder, monkeypatch):
    monkeypatch.undo()
    path = write_report(folder)
    page = Page(path.read_text(encoding="utf-8"))
    library = gzip.decompress(base64.b64decode(page.scripts["script plotly"])).decode("utf-8")
    assert library.startswith("/**\n* plotly.js") and "MIT license" in library[:200]
    assert path.stat().st_size < 2_600_000


@pytest.mark.slow
def test_plotly_accepts_the_figures(folder):
    import plotly.graph_objects as go

    run = read_run(folder)
    sections = charts.chart_sections(run.rows, run.evaluation)
    titles = [chart.title for section in sections for chart in section.charts]
    for title in (
        "Reward",
        "Reward part: bleu",
        "Reward part: perplexity",
        "Held-out bleu",
        "KL to the reference",
        "Mismatch KL",
    ):
        assert title in titles
    for title in ("Entropy", "Length in tokens", "Truncated fraction", "Diversity", "Gradient norm", "Loss"):
        assert title in titles
    assert titles[-1] == "sampler/cache_hits" and sections[-1].folded and len(set(titles)) == len(titles)
    for section in sections:
        for chart in section.charts:
            plain = re.sub(r"\$\w+", "#123456", json.dumps(chart.figure))
            go.Figure(json.loads(plain))  # raises on any unknown property or wrong value
            for trace in chart.figure["data"]:
                assert len(trace["x"]) == len(trace["y"])


def test_band_and_held_out_points_of_the_reward_chart():
    rows = [{"step": 1, "reward/mean": 1.0, "reward/std": 0.5}, {"step": 2, "reward/mean": 2.0}]
    chart = charts.chart_sections(rows, {"reward": {"before": 0.5, "after": 3.0}})[0].charts[0]
    low, high, mean, held_out = chart.figure["data"]
    assert (low["y"], high["y"], mean["y"]) == ([0.5, None], [1.5, None], [1.0, 2.0])
    assert (held_out["x"], held_out["y"]) == ([0, 2], [0.5, 3.0])


def test_thinning_keeps_the_last_row_and_held_out_measurements():
    rows = [{"step": i, "kl": 0.1} for i in range(1, 10_001)]
    rows[776]["held_out/reward"] = 1.0
    kept = charts.thin_rows(rows)
    assert len(kept) <= charts.MAX_POINTS + 2
    assert kept[-1]["step"] == 10_000 and any("held_out/reward" in row for row in kept)


def test_non_finite_numbers_become_gaps(folder):
    rows = [{"step": 1, "reward/mean": math.nan, "kl": math.inf}, {"step": 2, "reward/mean": 1.0, "kl": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    figures = json.loads(page_of(folder).scripts["script figures"])
    assert figures[0]["data"][0]["y"] == [None, 1.0]


def test_hostile_text_is_escaped_everywhere(folder):
    texts = dict.fromkeys(("prompt_id", "prompt", "reference", "text", "completion"), HOSTILE)
    rows = [{**texts, "reward": reward, "parts": {HOSTILE: 1}} for reward in (1.0, 2.0)]
    for when in ("before", "after"):
        synthetic_run.write_json(folder / "evaluation" / f"{when}.json", {"samples": rows})
    synthetic_run.write_lines(folder / "samples.jsonl", [{**texts, "step": 3, "flags": [HOSTILE], "reward": 1}])
    synthetic_run.write_lines(folder / "warnings.jsonl", [{"step": 1, "text": HOSTILE}])
    synthetic_run.write_lines(folder / "metrics.jsonl", [{"step": 1, f"reward/{HOSTILE}": 1.0, HOSTILE: 2.0}])
    synthetic_run.write_json(folder / "evaluation.json", {f"reward/{HOSTILE}": entry(1, 2, 0.5, 1.5)})
    synthetic_run.write_json(folder / "environment.json", {HOSTILE: {HOSTILE: HOSTILE}})
    (folder / "recipe.toml").write_bytes(HOSTILE.encode("utf-8", "backslashreplace"))
    page = page_of(folder)
    assert sorted(tag for tag, _ in page.tags if tag in ("script", "img")) == ["script"] * 3
    assert page.text.count("<script>alert(1)</script></script><img src=x onerror='a()'>\"'&") >= 8
    assert "[U+202E]gnp[U+202C][U+0000][U+001B][2J[U+D83D]" in page.text
    assert "{{ 7*7 }}" in page.text


def test_json_cannot_end_its_script_element():
    value = ["</script><!--<script>&", "\u2028\u2029", "\ud800"]
    text = script_json(value)
    assert not set("<>&\u2028\u2029\ud800") & set(text) and json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json([math.nan])


def test_invisible_characters_are_shown_and_long_text_is_shortened():
    assert samples.visible("a\r\nb\tc\u2028d") == "a\nb\tc\nd"
    assert samples.visible("\u202eabc\ufeff") == "[U+202E]abc[U+FEFF]"
    assert samples.visible("a\u200db\u200f") == "a\u200db\u200f"
    assert samples.visible("x" * 5000).endswith("x … (1,000 more characters)")
    assert samples.visible(None) == ""


@pytest.mark.parametrize(
    "missing",
    [
        "recipe.toml",
        "metrics.jsonl",
        "samples.jsonl",
        "evaluation.json",
        "environment.json",
        "evaluation/before.json",
        "evaluation/after.json",
    ],
)
def test_a_missing_file_is_named_and_the_rest_is_shown(folder, missing):
    (folder / missing).unlink()
    page = page_of(folder)
    assert f"{missing} is missing" in page.text
    assert "news" in page.text


def test_a_run_without_warnings_has_no_warning_box(folder):
    (folder / "warnings.jsonl").unlink()
    assert "warning" not in page_of(folder).text


def test_a_killed_run_is_reported_up_to_its_last_step(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:40], encoding="utf-8")
    for name in ("evaluation.json", "evaluation/before.json", "evaluation/after.json"):
        (folder / name).unlink()
    page = page_of(folder)
    assert "The run has made 7 of 25 steps." in page.text
    assert "No conclusion yet" in page.text and "each step uses different prompts, so this proves nothing" in page.text
    assert "metrics.jsonl: 1 damaged line left out" in page.text


def test_a_folder_with_only_a_recipe_and_one_with_garbage_make_a_page(tmp_path):
    (tmp_path / "recipe.toml").write_text("name = 'x'", encoding="utf-8")
    assert "No conclusion yet" in page_of(tmp_path).text
    (tmp_path / "evaluation").mkdir()
    for name in ("metrics.jsonl", "samples.jsonl", "warnings.jsonl", "recipe.toml", "environment.json"):
        (tmp_path / name).write_bytes(
            b'\xff\xfe{"step": \n[1, 2]\n{"step": null}\n{"step": 1, "reward": [], "kl": "x"}'
        )
    (tmp_path / "evaluation.json").write_text('{"reward": {"difference": "x", "interval": {}}, "bleu": 3}')
    (tmp_path / "evaluation" / "before.json").write_text('{"samples": [1, {"parts": [], "text": 5, "reward": "x"}]}')
    (tmp_path / "evaluation" / "after.json").write_text('{"samples": [{"text": null}]}')
    assert "recipe.toml is not valid TOML" in page_of(tmp_path).text


def test_repeated_steps_count_once_and_only_samples_of_the_last_step_are_kept(folder):
    synthetic_run.write_lines(folder / "metrics.jsonl", [{"step": s, "kl": k} for s, k in ((1, 1), (2, 2), (2, 3))])
    synthetic_run.write_lines(
        folder / "samples.jsonl", [{"step": s, "prompt_id": f"{s}{n}"} for n, s in enumerate((1, 2, 1, 2, 2))]
    )
    run = read_run(folder)
    assert [row["kl"] for row in run.rows] == [1, 3]
    assert [row["prompt_id"] for row in run.samples] == ["23", "24"]  # the repeated step's, as of the metrics


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch):
    write_report(folder).write_text("old", encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BurnishError, match="the disk is full"):
        write_report(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == "old"
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_the_same_run_gives_the_same_bytes(folder):
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


@pytest.mark.parametrize(
    ("reward", "start"),
    [
        (entry(-3.5, -3.0, 0.2, 0.8), "Held-out reward rose from -3.50 to -3.00 (difference +0.50, 95% interval"),
        (entry(-3.0, -3.5, -0.8, -0.2), "Held-out reward fell from -3.00 to -3.50"),
        (
            entry(-3.5, -3.4, -0.2, 0.4),
            "There is no clear evidence that held-out reward changed: -3.50 before training",
        ),
        ({"before": 1, "after": 2, "difference": 1}, "Held-out reward went from 1.000 to 2.000, without a test"),
        (None, "No conclusion yet"),
    ],
)
def test_the_conclusion_claims_only_what_the_interval_supports(reward, start):
    assert main_conclusion(RunData("x", evaluation={"reward": reward} if reward else {})).startswith(start)


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        (
            {"perplexity": entry(36, 22, -19, -11, better="lower"), "distinct_2": entry(0.95, 0.92, -0.04, -0.02)},
            "The text became blander",
        ),
        (
            {"perplexity": entry(36, 22, -19, -11, better="lower"), "bleu": entry(0.4, 0.5, -0.1, 0.3)},
            "BLEU against the true text did not clearly rise, so this may explain most of the gain",
        ),
        (
            {"perplexity": entry(36, 22, -19, -11, better="lower"), "distinct_2": entry(0.95, 0.94, -0.03, 0.01)},
            "without a clear loss of variety",
        ),
        (
            {"perplexity": entry(36, 35, -5, 3, better="lower"), "distinct_2": entry(0.95, 0.92, -0.04, -0.02)},
            "less varied (distinct-2 0.950 to 0.920, -3%), though not more predictable",
        ),
        (
            {"perplexity": entry(36, 35, -5, 3), "distinct_2": entry(0.95, 0.94, -0.03, 0.01)},
            "There is no sign of blander text",
        ),
        ({"distinct_2": entry(0.95, 0.92, -0.04, -0.02)}, "less varied (distinct-2 0.950 to 0.920, -3%)."),
        ({"length": entry(40, 50, 5, 15, better=None)}, "Answers became longer (40 to 50 tokens, +25%)"),
    ],
)
def test_blandness_follows_the_measurements(evaluation, words):
    assert words in " ".join(blandness(RunData("x", evaluation=evaluation)))


def test_contributions_are_listed_only_if_they_add_up():
    recipe = {"reward": [{"use": "a", "weight": 1.0}, {"use": "m:b", "weight": 2.0}]}
    parts = {"reward/a": entry(0, 1, 0.5, 1.5), "reward/b": entry(0, 1, 0.5, 1.5)}
    good = RunData("x", recipe=recipe, evaluation={"reward": entry(0, 3, 2.5, 3.5), **parts})
    assert blandness(good) == ["Contributions to the change of +3.0 in reward: b +2.0 and a +1.0."]
    bad = RunData("x", recipe=recipe, evaluation={"reward": entry(0, 4, 2.5, 4.5), **parts})
    assert blandness(bad) == []


def test_other_metrics_are_grouped_by_result():
    evaluation = {
        "reward": entry(0, 1, 0.5, 1.5),
        "bleu": entry(1, 2, 0.5, 1.5),
        "distinct_2": entry(0.9, 0.8, -0.2, -0.05),
        "chrf": entry(1, 1.1, -0.5, 0.6),
        "length": entry(40, 50, 5, 15, better=None),
        "truth_nll": {"before": 1.0},
    }
    assert other_outcomes(evaluation) == (
        "Other metrics: BLEU improved; distinct-2 got worse; length in tokens rose; chrF did not clearly change."
    )
    assert other_outcomes({"reward": entry(0, 1, 0.5, 1.5)}) == ""


def test_samples_are_paired_by_prompt_and_index_and_ranked_by_gain():
    before = [{"prompt_id": "a", "reward": r, "text": str(r)} for r in (0.0, 1.0)] + [{"prompt_id": "only-before"}]
    after = [{"prompt_id": "a", "reward": r, "text": str(r)} for r in (2.0, 0.5)] + [{"prompt_id": "only-after"}]
    pairs = samples.pair_samples(before, after)
    assert [(pair.label, pair.gain) for pair in pairs] == [("a", 2.0), ("a, sample 2", -0.5)]
    first, gains, losses = samples.rank_pairs(pairs)
    assert [pair.gain for pair in first.first] == [2.0, -0.5]
    assert [pair.gain for pair in gains.first] == [2.0] and [pair.gain for pair in losses.first] == [-0.5]
    assert gains.note == "Of 2 completions, 1 gained and 1 lost reward."


def test_no_training_sample_is_both_best_and_worst():
    best, worst = samples.rank_training_samples([{"reward": float(i), "completion": str(i)} for i in range(5)])
    assert [item[2].text for item in best.first] == ["4", "3", "2"]
    assert [item[2].text for item in worst.first] == ["0", "1"]


def test_an_integer_beyond_floating_point_becomes_a_gap(folder):
    rows = [{"step": 1, "reward/mean": 10**400}, {"step": 2, "reward/mean": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    figures = json.loads(page_of(folder).scripts["script figures"])
    assert figures[0]["data"][0]["y"] == [None, 1.0]
