"""Recipes, tasks and rewards that cannot work: exit status, message, and no files left behind."""

from __future__ import annotations

import pytest

from tests.end_to_end.refusals import NO_OVERRIDE, TOY, contents, refused


class TestRecipes:
    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            (("steps = 4", "stepps = 4"), ["unknown key 'stepps'", "did you mean 'steps'?"]),
            (("prompts_per_step", "prompt_per_step"), ["sampling.prompt_per_step", "did you mean 'prompts_per_step'?"]),
            (("steps = 4", 'steps = "4"'), ["steps = '4'", "must be a whole number"]),
            (("steps = 4", "steps = 0"), ["steps = 0", "must be at least 1"]),
            (("steps = 4", "steps = true"), ["steps = true", "must be a whole number"]),
            (("steps = 4", "steps = 4\nseed = -1"), ["seed = -1"]),
            (("steps = 4", "steps = "), ["not valid TOML", "line 3"]),
            (("steps = 4", "steps = 4\nsteps = 5"), ["not valid TOML"]),
            (('use = "rloo"', 'use = "rlo"'), ["algorithm.use = 'rlo'", "did you mean 'rloo'?"]),
            (('use = "exact"', 'use = "exat"'), ["reward.0", "no reward named 'exat'", "did you mean 'exact'?"]),
            (('use = "toy"', 'use = "toyy"'), ["task", "no task named 'toyy'", "did you mean 'toy'?"]),
            (('use = "toy"', 'use = "toy"\nprompt = 3'), ["task", "'prompt'", "did you mean 'prompts'?"]),
            (('use = "toy"', 'use = "toy"\nprompts = "three"'), ["prompts = 'three'"]),
            (('use = "exact"', 'use = "bleu"\ntokenise = "zh"'), ["option 'tokenise'", "did you mean 'tokenize'?"]),
            (('use = "exact"', 'use = "repetition"\nn = "two"'), ["n = 'two'"]),
            (("samples_per_prompt = 4", "samples_per_prompt = 1"), ["'rloo'", "samples_per_prompt must be at least 2"]),
            (
                ('use = "rloo"', 'use = "rloo"\nkl = { coefficient = 0.1, estimator = "k1" }'),
                ["algorithm.kl", "mean is zero", '"k2" or "k3"'],
            ),
            (
                ('use = "exact"', 'use = "exact"\n[[reward]]\nuse = "exact"'),
                ["two rewards are called 'exact'", "name ="],
            ),
            (('use = "exact"', 'use = "exact"\nweight = 0.0'), ["weight 0", "give at least one a weight"]),
            (('use = "exact"', 'use = "exact"\nweight = inf'), ["reward.0.weight", "finite"]),
            (('[[reward]]\nuse = "exact"\n', ""), ["'reward' is missing", "[[reward]]"]),
            (('name = "toy"', 'name = "../toy"'), ["name = '../toy'"]),
            (('use = "tabular"', 'use = "tabular"\nlora = { rank = 4 }'), ["LoRA", "remove policy.lora"]),
            (('use = "tabular"', 'use = "causal_lm"\nmodel = 3'), ["policy.model = 3", "must be text, in quotes"]),
        ],
    )
    def test_recipe_is_refused_before_anything_is_written(self, workspace, change, parts):
        assert change[0] in TOY
        workspace.write("toy.toml", TOY.replace(*change, 1))
        before = contents(workspace.folder)
        for options in ((), ("--dry-run",)):
            refused(workspace.ask("train", "toy.toml", *options), 2, "toy.toml", *parts)
        assert contents(workspace.folder) == before

    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("jobs:missing", ["'jobs' has no 'missing'"]),
            ("nowhere:reward", ["cannot import 'nowhere'"]),
            ("jobs:unfillable", ["unfillable", "'teacher'"]),
        ],
    )
    def test_code_is_refused_before_anything_is_written(self, workspace, name, parts):
        workspace.write("toy.toml", TOY.replace('use = "exact"', f'use = "{name}"'))
        before = contents(workspace.folder)
        refused(workspace.ask("train", "toy.toml"), 2, "toy.toml", *parts)
        dry = workspace.ask("train", "toy.toml", "--dry-run")  # which runs none
        assert (dry.status, "Traceback" in dry.err) == (2 if "nowhere" in name else 0, False)
        assert contents(workspace.folder) == before

    def test_not_utf_8(self, workspace):
        (workspace / "toy.toml").write_bytes(TOY.replace('"toy"', '"我"', 1).encode("gb18030"))
        refused(workspace.ask("train", "toy.toml"), 2, "toy.toml: not UTF-8", "save it as UTF-8")

    def test_missing_file(self, workspace):
        refused(workspace.ask("train", "toyy"), 2, "no recipe 'toyy'", "did you mean 'toy'?")
        refused(workspace.ask("train", "some/where.toml"), 2, "no recipe 'some/where.toml'")

    def test_folder(self, workspace):
        refused(workspace.ask("train", workspace.folder), 2, "is a folder", "name the recipe's .toml file")

    def test_unreadable_file(self, workspace):
        workspace.write("toy.toml", TOY).chmod(0)
        refused(
            workspace.ask("train", "toy.toml", first=NO_OVERRIDE), 2, "toy.toml: cannot be read", "Permission denied"
        )

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("steps", ["key=value"]),
            ("stepps=3", ["did you mean 'steps'?"]),
            ("steps.more=3", ["steps is a value, not a section"]),
            ("reward.weight=2.0", ["reward.weight=2.0", "number"]),
            ("reward.7.weight=2.0", ["from 0 to 1"]),
            ("steps=many", ["steps = 'many'"]),
        ],
    )
    def test_overrides(self, workspace, override, parts):
        refused(workspace.ask("train", "toy", "--set", override), 2, *parts)

    def test_neither_or_both_of_recipe_and_resume(self, workspace):
        refused(workspace.ask("train"), 2, "--resume")
        refused(workspace.ask("train", "toy", "--resume", "runs/toy"), 2, "either a recipe")
        workspace.write("toy.toml", TOY)
        assert workspace.ask("train", "toy.toml", "--run-dir", "run", "--quiet").status == 0
        refused(workspace.ask("train", "--resume", "run", "--set", "steps=9"), 2, "keeps its recipe")
        refused(workspace.ask("train", "--resume", "run", "--run-dir", "other"), 2, "keeps its recipe")


class TestTasks:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("Nothing", ["no training prompts"]),
            ("NoneHeldOut", ["no held-out prompts"]),
            ("Twice", ["the same id", "unique"]),
            ("BothSides", ["prompt 'train1' on both sides"]),
        ],
    )
    def test_refused_and_the_run_folder_is_removed(self, workspace, tiny_recipe, name, parts):
        workspace.write("tiny.toml", tiny_recipe().replace("Headlines", name))
        before = contents(workspace.folder)
        refused(workspace.ask("train", "tiny.toml", "--run-dir", "run"), 2, f"jobs:{name}", *parts)
        assert contents(workspace.folder) == before


class TestRewards:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("raises", ["reward 'raises' raised ZeroDivisionError", "on prompt '"]),
            ("nan", ["reward 'nan' returned nan", "finite"]),
            ("word", ["reward 'word' returned 'good' (str)", "one number"]),
            ("too_few", ["reward 'too_few' returned", "one number per completion"]),
        ],
    )
    def test_failure_names_the_reward_and_the_run_can_be_resumed(self, workspace, name, parts):
        workspace.write("toy.toml", TOY.replace('use = "exact"', f'use = "jobs:{name}"'))
        refused(workspace.ask("train", "toy.toml", "--run-dir", "run", "--quiet"), 1, *parts)
        # With a working reward, the run resumes in its folder, once the change is accepted.
        workspace.write("jobs.py", f"def {name}(completion):\n    return float(len(completion.text))\n")
        refused(workspace.ask("train", "--resume", "run", "--quiet"), 2, "jobs.py", "--accept-changed-inputs")
        assert workspace.ask("train", "--resume", "run", "--accept-changed-inputs", "--quiet").status == 0
        assert len((workspace / "run" / "metrics.jsonl").read_text().splitlines()) == 4

    def test_in_a_later_step(self, workspace):
        workspace.write("toy.toml", TOY.replace('use = "exact"', 'use = "jobs:later"'))
        refused(workspace.ask("train", "toy.toml", "--run-dir", "run", "--quiet"), 1, "'later' raised RuntimeError")
        assert contents(workspace / "run" / "checkpoints")[0] == "step-2"
        assert len((workspace / "run" / "metrics.jsonl").read_text().splitlines()) == 2
        workspace.write("jobs.py", "def later(completion):\n    return float(len(completion.text))\n")
        assert workspace.ask("train", "--resume", "run", "--accept-changed-inputs", "--quiet").status == 0
