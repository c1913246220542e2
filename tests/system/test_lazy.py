"""A postponed import loads the package at the first use of an attribute, and the light verbs never use torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run_python(code: str, folder: Path) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_package_is_loaded_at_its_first_use(tmp_path: Path) -> None:
    package = tmp_path / "slow"
    package.mkdir()
    (package / "__init__.py").write_text("print('loaded')\nimport slow.part\nvalue = slow.part.value + 1\n")
    (package / "part.py").write_text("import slow\nvalue = 1\n")
    code = """
        from burnish.system.lazy import postpone_import
        postpone_import("slow")
        import slow
        import slow as again
        print("imported")
        {use}
        import slow.part
        print(slow.value, slow.part.value, again is slow)
    """
    expected = "imported\nloaded\n2 1 True\n"
    for use in ("slow.value", "from slow import value", "import slow.part", ""):
        assert run_python(code.format(use=use), tmp_path) == expected, use


def test_threads_wait_for_the_one_that_loads(tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "__init__.py").write_text("import time\ntime.sleep(0.2)\nvalue = 1\n")
    code = """
        from concurrent.futures import ThreadPoolExecutor
        from burnish.system.lazy import postpone_import
        postpone_import("slow")
        import slow
        def by_name(_):
            from slow import value
            return value
        with ThreadPoolExecutor(4) as threads:
            print(*threads.map({use}, range(4)))
    """
    for use in ("lambda _: slow.value", "by_name"):
        assert run_python(code.format(use=use), tmp_path) == "1 1 1 1\n", use


def test_a_package_that_fails_reports_its_cause_each_time(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("raise OSError('a library is missing')\n")
    code = """
        from burnish.system.lazy import postpone_import
        postpone_import("broken")
        import broken
        for _ in range(2):
            try:
                broken.value
            except OSError as error:
                print(error)
    """
    assert run_python(code, tmp_path) == "a library is missing\n" * 2


def test_a_package_that_is_not_loaded_is_pickled_by_name(tmp_path: Path) -> None:
    code = """
        import pickle
        from burnish.system.lazy import postpone_import
        postpone_import("wave")
        import wave
        print(pickle.loads(pickle.dumps(wave)) is wave)
    """
    assert run_python(code, tmp_path) == "True\n"


def test_a_package_that_is_missing_or_loaded_is_left_alone(tmp_path: Path) -> None:
    code = """
        import sys
        from burnish.system.lazy import postpone_import
        loaded = sys.modules["json"] = __import__("json")
        postpone_import("json")
        postpone_import("no_such_package")
        print(sys.modules["json"] is loaded, "no_such_package" in sys.modules)
    """
    assert run_python(code, tmp_path) == "True False\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    ["list rewards", "list algorithms", "list tasks", "list models", "train news --dry-run", "train news --set stpes=3",
     "sft sft_translation --dry-run", "score a --use repetition"],
)  # fmt: skip
def test_verbs_that_compute_nothing_do_not_load_torch(verb: str, tmp_path: Path) -> None:
    code = f"""
        import sys
        from burnish.cli.app import main
        sys.argv = ["burnish", *{verb.split()!r}]
        try:
            main()
        except SystemExit:
            pass
        print({{"torch.nn", "transformers", "numpy.linalg", "asyncio", "rich"}} & sys.modules.keys())
    """
    assert run_python(code, tmp_path).splitlines()[-1] == "set()"
