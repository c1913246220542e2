"""The library's verbs: model and reward names, errors before loading, and progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from burnish import api
from burnish.errors import InputError
from burnish.protocols import Observer
from burnish.recipe.schema import load_recipe
from burnish.reports.terminal.progress import make_observer
from burnish.rewards.registry import REWARDS
from burnish.run.folder import Run
from burnish.scoring import score
from burnish.types import SamplingParams
from tests.fakes import RecordingObserver


@pytest.fixture
def early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run folder without a checkpoint, relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    Run.create(load_recipe("news"), Path("early")).close()
    return Path("early")


@pytest.mark.parametrize("name", ["early", "./early", "absolute"])
def test_a_run_without_a_checkpoint_is_not_a_hub_id(early: Path, name: str) -> None:
    model = str(early.absolute()) if name == "absolute" else name
    with pytest.raises(
        InputError, match=f"{model}: this run has no checkpoint yet; resume with: burnish train --resume"
    ):
        api.generate(model, "a", sampling=SamplingParams(1))


def test_the_model_of_a_run_is_checked_like_any_folder(early: Path) -> None:
    (early / "model").mkdir()
    with pytest.raises(InputError, match=r"model folder early/model has no config\.json"):
        api.generate("early", "a", sampling=SamplingParams(1))


def test_a_run_without_a_language_model_is_refused(early: Path) -> None:
    Run.create(load_recipe("toy"), Path("table")).close()
    Path("table/model").mkdir()
    with pytest.raises(InputError, match=r'table: this run trained policy\.use = "tabular", which is no'):
        api.generate("table", "a", sampling=SamplingParams(1))


def recipe_with(model: str) -> dict[str, object]:
    return {
        "name": "small",
        "steps": 1,
        "policy": {"model": model},
        "task": {"use": "news"},
        "reward": [{"use": "repetition"}],
    }


class Stop(BaseException):
    """Raised in place of loading the model, because the test is about what happens before."""


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("models/mine", "{here}/models/mine"),
        ("~/models/mine", "{here}/models/mine"),
        ("{here}/models/mine", "{here}/models/mine"),
        ("somebody/model", "somebody/model"),
        ("smollm2-135m", "smollm2-135m"),
    ],
)
def test_the_recipe_has_the_absolute_path_of_a_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, written: str
) -> None:
    # A run resumed from another folder would look for a relative path there, and then on the hub.
    def build(*_: object, **__: object) -> None:
        raise Stop

    monkeypatch.setattr(api, "build", build)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "smollm2-135m").mkdir()  # the catalogue's name takes precedence
    with pytest.raises(Stop):
        api.train(recipe_with(model.format(here=tmp_path)), run_dir="run", observer=make_observer(quiet=True))
    assert load_recipe("run/recipe.toml").policy.model == written.format(here=tmp_path)


class Judge:
    """A reward with state."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, text: str) -> float:
        return float(self.word in text)


@pytest.mark.slow
def test_a_callable_object_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REWARDS, "_entries", {})  # undo the registration
    result = api.train(
        "toy", rewards={Judge("爱"): 1.0}, run_dir=tmp_path / "run", steps=1, observer=make_observer(quiet=True)
    )  # fmt: skip
    (part,) = load_recipe(tmp_path / "run" / "recipe.toml").reward
    assert (part.use, part.weight) == ("Judge", 1.0)
    assert "reward/Judge" in result.metrics[0]


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("verb", ["generate", "score"])
def test_a_download_is_reported_even_without_an_observer(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, verb: str, broken: bool
) -> None:
    def resolve(model: str, *, offline: bool, observer: Observer) -> Path:
        observer.message(f"fetching {model}")
        if broken:
            raise InputError("no such model")
        return tiny("llama")

    def use() -> None:
        if verb == "generate":
            (one,) = api.generate("theirs", "a", sampling=SamplingParams(2))
            assert len(one.token_ids) in (1, 2)
        else:
            (row,) = score(["b"], rewards=["perplexity"], model="theirs")
            assert row["text"] == "b"

    observer = RecordingObserver()
    monkeypatch.setattr("burnish.reports.terminal.progress.make_observer", lambda: observer)
    monkeypatch.setattr(api, "resolve_model", resolve)
    monkeypatch.setattr("burnish.catalogue.convert.resolve_model", resolve)
    if broken:
        with pytest.raises(InputError, match="no such model"):
            use()
    else:
        use()
    assert observer.calls == [("message", "info", "fetching theirs"), ("finish",)]


def test_an_empty_text_is_scored(tiny: Callable[[str], Path]) -> None:
    (row,) = score([""], rewards=["perplexity"], model=str(tiny("llama")))
    assert row == {"text": "", "parts": {"perplexity": 0.0}}


@pytest.mark.parametrize(
    ("use", "text", "reference", "message"),
    [
        ("bleu", "a", None, "'bleu' needs a reference; pass --reference TEXT"),
        ("bleu", "a", " ", "'bleu' needs a reference"),
        ("grammar", "你好吗", None, "'grammar' supports only English, but text 1 is Chinese or Japanese"),
        ("similarity", "hello", "你好吗", "'similarity' supports only English, but the reference is Chinese"),
        ("verifier", "7", "7", "use 'numeric' or 'exact' instead"),
    ],
)
def test_a_reward_that_cannot_score_the_texts_is_refused(
    use: str, text: str, reference: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score([text], rewards=[use], reference=reference)


def test_a_run_is_evaluated_on_its_own_recipe(tmp_path: Path) -> None:
    api.train("toy", overrides=["steps=1"], run_dir=tmp_path / "run", observer=make_observer(quiet=True))
    with pytest.raises(InputError, match=r"recipe 'toy' has policy\.use = \"tabular\""):
        api.evaluate(str(tmp_path / "run"))
    with pytest.raises(InputError, match="no such folder"):
        api.evaluate(str(tmp_path / "gone"))
