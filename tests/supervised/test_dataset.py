"""Preference losses by hand, rows from files, the split, the order of examples, and recipes."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from burnish.algorithms.preference import (
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
)
from burnish.data.rows import Conversation, LabelledCompletion, PreferencePair, PromptCompletion, rows_digest
from burnish.data.splits import digest, split_items
from burnish.errors import InputError
from burnish.policies.tabular import TablePolicy
from burnish.recipe.schema import builtin_recipes, load_recipe
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import Checkpoint
from burnish.supervised.data_rows import DataRows
from burnish.supervised.dataset import split_rows
from burnish.supervised.recipe import PreferRecipe, RewardModelRecipe, SFTRecipe, load_supervised, recipe_kind
from burnish.supervised.sources import _exchanged
from burnish.training.prompt_order import PromptOrder
from burnish.types import Message


def close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestLosses:
    """All values follow from sigmoid(log 3) = 3/4, -log sigmoid(log 3) = log(4/3) and sigmoid(-log 3) = 1/4."""

    LOG3 = math.log(3)

    def test_bradley_terry(self):
        # The gap is log 3. With a margin of log 3 it is 0, and -log sigmoid(0) = log 2.
        close(bradley_terry_loss(tensor(self.LOG3 + 1), tensor(1.0)), [math.log(4 / 3)])
        close(bradley_terry_loss(tensor(self.LOG3 + 1), tensor(1.0), tensor(self.LOG3)), [math.log(2)])
        # The centre term adds 0.5 (2 + (-1))^2 = 0.5 to -log sigmoid(3).
        close(bradley_terry_loss(tensor(2.0), tensor(-1.0), 0.0, 0.5), [math.log1p(math.exp(-3)) + 0.5])

    def test_dpo(self):
        # beta 0.5 times a gap of 2 log 3 is log 3.
        close(dpo_loss(tensor(self.LOG3), tensor(-self.LOG3), 0.5), [math.log(4 / 3)])

    def test_ipo(self):
        # The target gap at tau 0.1 is 5: a gap of 5 costs 0, and gaps of 3 and 7 cost 4.
        close(ipo_loss(tensor(5.0, 3.0, 7.0), tensor(0.0, 0.0, 0.0), 0.1), [0.0, 4.0, 4.0])

    def test_kto(self):
        # z0 = max(0, mean(1, 3)) = 2. With beta 0.5 both gains are (2 + 2 log 3 - 2) / 2 = log 3, so the losses are
        # 2 (1 - 3/4) and 3 (1 - 1/4).
        point = kto_reference_point(tensor(1.0, 3.0).requires_grad_())
        assert point.item() == 2 and not point.requires_grad
        ratios = tensor(2 + 2 * self.LOG3, 2 + 2 * self.LOG3)
        close(kto_loss(ratios, torch.tensor([True, False]), point, 0.5, 2.0, 3.0), [0.5, 2.25])
        assert kto_reference_point(tensor(-1.0, -3.0)).item() == 0

    def test_gradients(self):
        chosen, rejected = (torch.randn(5, dtype=torch.float64).requires_grad_() for _ in range(2))
        desirable = torch.tensor([True, False, True, False, False])
        for loss in (
            lambda c, r: bradley_terry_loss(c, r, 0.3, 0.1),
            lambda c, r: dpo_loss(c, r, 0.3),
            lambda c, r: ipo_loss(c, r, 0.3),
            lambda c, r: kto_loss(c - r, desirable, 0.2, 0.3, 1.5, 0.5),
        ):
            assert torch.autograd.gradcheck(loss, (chosen, rejected))


class TestDataRows:
    def rows(self, tmp_path, text: str, **options):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(text.encode())
        return DataRows(path=str(path), **options).rows()

    def test_every_line_is_a_row_or_listed(self, tmp_path):
        lines = [
            '{"question": "a", "chosen": "b", "rejected": "c", "more": 2}',
            "{not json",
            "",
            '{"question": "a", "chosen": "b"}',
            '{"question": 1, "chosen": "b", "rejected": "c"}',
            '{"question": "a", "chosen": "b", "rejected": "b"}',
            '{"question": "a", "chosen": " ", "rejected": "b"}',
            '{"question": "a", "chosen": "b", "rejected": "c"}',
            "[1]",
        ]
        rows = self.rows(tmp_path, "\n".join(lines), format="pairs", columns={"prompt": "question"})
        assert rows.rows == (PreferencePair("a", "b", "c", digest("a")),)
        assert rows.repeats == 1
        assert [broken.position for broken in rows.broken] == [f"line {number}" for number in (2, 4, 5, 6, 7, 9)]
        assert "no column 'rejected'" in rows.broken[1].reason

    def test_chat(self, tmp_path):
        chat = (
            '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
            '{"messages": [{"role": "user", "content": "q"}]}\n{"messages": [{"role": "tool", "content": "q"}]}'
        )
        rows = self.rows(tmp_path, chat, format="chat")
        assert rows.rows[0].unit == digest("q")
        assert len(rows.broken) == 2

    def test_invalid_options_are_rejected(self, tmp_path):
        for options, message in (
            ({}, "path is missing"),
            ({"path": "x", "format": "pair"}, "did you mean 'pairs'"),
            ({"path": "x", "format": "text", "columns": {"prompt": "p"}}, "format 'text' has the columns text"),
        ):
            with pytest.raises(InputError, match=message):
                DataRows(**options)
        with pytest.raises(InputError, match="cannot be read"):
            DataRows(path=str(tmp_path / "none"), format="text").rows()


def test_the_digest_of_rows_equals_that_of_earlier_versions():
    """Version 0.1 hashed the ``repr`` of rows, whose classes had other names."""
    conversation = Conversation((Message("user", "q"), Message("assistant", "a")), "u")
    turns = "(Turn(role='user', content='q'), Turn(role='assistant', content='a'))"
    rows = [
        PromptCompletion("p", "c", "u"),
        PreferencePair("p", "c", "r", "u"),
        LabelledCompletion("p", "c", True, "u"),
    ]
    assert rows_digest([conversation, *rows]) == digest(
        f"Dialogue(turns={turns}, unit='u')",
        "Text(prompt='p', completion='c', unit='u')",
        "Pair(prompt='p', chosen='c', rejected='r', unit='u', margin=None)",
        "Judged(prompt='p', completion='c', desirable=True, unit='u')",
    )


def test_near_copies_of_a_prompt_share_a_side(tmp_path):
    """Two versions of each question, with thirteen words in common."""
    lines = [
        {"prompt": f"{start} " + " ".join(f"word{index}in{n}" for index in range(13)), "completion": f"{start} {n}"}
        for n in range(60)
        for start in ("Please tell", "I ask about")
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = DataRows(path=str(path), format="completion").rows().rows
    train, held_out = split_rows(rows, 25)
    assert len(train) + len(held_out) == 120
    assert both_sides(train, held_out) == set()
    assert len({row.unit for row in held_out}) == len(held_out) / 2
    # Split by the digests of single prompts, versions of one question would be separated.
    assert len(both_sides(*split_items(rows, [digest(row.prompt) for row in rows], 25))) > 10


def both_sides(train, held_out):
    """Return the last words that end prompts on both sides."""
    last = [{row.prompt.split()[-1] for row in side} for side in (train, held_out)]
    return last[0] & last[1]


def test_the_split_depends_only_on_the_prompt():
    rows = [PromptCompletion(f"prompt {n % 40}", f"answer {n}", digest(f"prompt {n % 40}")) for n in range(200)]
    train, held = split_rows(rows, 25)
    assert {row.prompt for row in train}.isdisjoint(row.prompt for row in held)
    assert len(train) + len(held) == 200
    assert set(split_rows(rows[::-1], 25)[1]) == set(held)
    with pytest.raises(InputError, match="choose a larger"):
        split_rows(rows[:1] * 2 + [next(row for row in rows if row in train)], 1)


def test_false_continuations_come_from_the_same_side_each_used_once():
    passages = [(f"family {n // 3:02}", f"text {n}") for n in range(60)]
    sides = [(n // 3) % 4 == 0 for n in range(60)]
    false = _exchanged(passages, sides)
    index = {text: n for n, (_, text) in enumerate(passages)}
    assert Counter(false) == Counter(text for _, text in passages)
    for n, text in enumerate(false):
        assert sides[index[text]] == sides[n]
        assert passages[index[text]][0] != passages[n][0]


def test_each_epoch_sees_each_example_once_and_any_step_can_be_drawn_first():
    draw = PromptOrder(10, 4, seed=3)
    seen = [index for step in range(1, 6) for index in draw.step(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert PromptOrder(10, 4, seed=3).step(4) == seen[12:16]


SFT = {"kind": "sft", "name": "small", "data": {"use": "news"}}


PREFER = {"kind": "prefer", "name": "small", "data": {"use": "news-pairs"}}


class TestRecipes:
    def test_commands_reject_each_others_recipes(self):
        with pytest.raises(InputError, match=r"for `burnish sft`, not for `burnish train`"):
            load_recipe(SFT)
        with pytest.raises(InputError, match=r"for `burnish sft`, not for `burnish prefer`"):
            load_supervised(PreferRecipe, SFT)
        with pytest.raises(InputError, match=r"without a kind is for `burnish train`"):
            load_supervised(SFTRecipe, "news")

    @pytest.mark.parametrize(
        ("kind", "data", "override", "message"),
        [
            (SFTRecipe, SFT, "data.use=new", "did you mean 'news'"),
            (SFTRecipe, SFT, "data.words=3", "unknown key 'words'"),
            (SFTRecipe, SFT, "batch.max_token=3", "did you mean 'max_tokens'"),
            (SFTRecipe, SFT, "policy.use=tabular", "only a causal_lm"),
            (SFTRecipe, SFT, "preference.use=dpo", "unknown key 'preference'"),
            (PreferRecipe, PREFER, "preference.use=ppo", "'dpo', 'ipo', 'kto', 'simpo', 'orpo' or 'cpo'"),
            (PreferRecipe, PREFER, "preference.margin=1", 'margin belongs to use = "simpo": leave it out with "dpo"'),
            (PreferRecipe, PREFER, "preference.label_smoothing=0.5", "label_smoothing = 0.5: must be below 0.5"),
            (PreferRecipe, PREFER, "preference.beta=0", "preference.beta = 0: must be above 0"),
            (PreferRecipe, PREFER, "data.rejected=another", "did you mean 'other'"),
        ],
    )
    def test_invalid_recipes_are_rejected(self, kind, data, override, message):
        with pytest.raises(InputError, match=message):
            load_supervised(kind, data, [override])

    @pytest.mark.parametrize("kind", [SFTRecipe, PreferRecipe, RewardModelRecipe])
    def test_built_in_recipes_are_valid_and_survive_writing(self, kind):
        names = builtin_recipes(recipe_kind(kind))
        assert names
        for name in names:
            recipe = load_supervised(kind, name)
            assert recipe.name == name
            assert load_supervised(kind, tomllib.loads(recipe.toml())) == recipe


def test_a_checkpoint_of_another_step_is_rejected(tmp_path):
    (tmp_path / "state.json").write_text('{"step": 1}')
    with pytest.raises(InputError, match=r"state\.json belongs to another step: delete the folder"):
        Checkpointer(None, SimpleNamespace(policy=TablePolicy()), 1).restore(Checkpoint(2, tmp_path))
