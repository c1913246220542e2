"""Rewards whose package is not installed."""

from __future__ import annotations

import sys

import pytest

from burnish.errors import InputError
from burnish.rewards.library import grammar as grammar_module
from burnish.rewards.library import tone
from burnish.rewards.library.grammar import grammar
from burnish.rewards.library.tone import attractiveness, sentiment, toxicity
from tests.rewards.completions import answer


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
    for cached in (grammar_module._linter, tone._analyzer, tone._snownlp, tone._profanity):
        cached.cache_clear()
    root = module.partition(".")[0]
    for name in [name for name in sys.modules if name == root or name.startswith(f"{root}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, root, None)
    with pytest.raises(InputError, match=rf"needs a package that is not installed: pip install 'burnish\[{extra}\]'"):
        run()
