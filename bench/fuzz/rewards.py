"""Cases of rewards: functions of a harmless grammar that return, raise, print and set odd things."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bench.fuzz.case import Case, Command
from bench.fuzz.damage import Draw
from bench.fuzz.reward_source import FORMS, HEAD, source
from bench.fuzz.samples import TOY, toml
from bench.fuzz.stock import Stock

SIGNATURES = (
    "completion", "text", "prompt", "completions", "texts", "text, reference", "completion, prompt, flags",
    "*, n=1", "",
    "text, *, n: int = 1", "completions, prompts, log_metric", "completion, log_count", "completions, **kwargs",
    "**kwargs",
    "*args", "text, unknown", "text, unknown=2", "text, texts", "self, text",
    "data_source, solution_str, ground_truth, extra_info",
    "reference_policy, text", "text: int", "text, /",
)  # fmt: skip
NUMBERS = (
    "1.0", "0", "-1", "True", "None", "math.nan", "math.inf", "-math.inf", "1e308", "-1e308", "1e-320", "10**400",
    "-0.0",
    "'1'", "b'1'", "1j", "[]", "[1.0]", "[[1.0]]", "{}", "{'score': 1.0}", "{'score': None}",
    "{'mean': 1.0, 'std': 2.0}",
    "np.float32(0.5)", "np.int8(3)", "np.array(0.5)", "np.array([0.5, 1.0])", "np.array('x')", "np.float16(math.inf)",
    "torch.tensor(0.5)", "torch.ones(2)", "torch.ones((), requires_grad=True)",
    "torch.tensor(0.5, dtype=torch.bfloat16)",
    "fractions.Fraction(1, 3)", "decimal.Decimal('0.1')", "decimal.Decimal('sNaN')", "NoNumber()", "object()",
    "(x for x in [1.0])",
    "lambda: 1.0", "Text('2')", "range(3)", "{1.0}", "...", "next(CALLS) / 7", "random.random()",
    "float(torch.rand(()))",
)  # fmt: skip
DEEDS = (
    "pass", "print('hello')", "print('\\x1b[2J', file=sys.stderr)", "sys.stdout.write('no line')",
    "warnings.warn('careful')",
    "logging.warning('hm')", "random.seed(1)", "np.random.seed(1)", "torch.manual_seed(1)",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_grad_enabled(False)", "torch.set_num_threads(1)", "torch.use_deterministic_algorithms(True)",
    "os.chdir('sub')",
    "os.environ['X'] = 'y'", "sys.stdout = None", "sys.stderr = open(os.devnull, 'w')", "sys.stdout.close()",
    "sys.argv.clear()",
    "sys.path.clear()", "signal.signal(signal.SIGINT, signal.SIG_IGN)", "warnings.simplefilter('error')",
    "np.seterr(all='raise')",
    "torch.inference_mode().__enter__()", "torch.autograd.set_detect_anomaly(True)", "os.umask(0o777)",
    "sys.setrecursionlimit(400)",
    "logging.disable()", "random.setstate(random.Random(5).getstate())", "torch.set_printoptions(precision=1)",
    "os.nice(0)",
    "decimal.getcontext().prec = 2", "locale_of = __import__('locale').setlocale(__import__('locale').LC_ALL, 'C')",
)  # fmt: skip
RAISES = (
    "raise ValueError('bad')", "raise ValueError", "raise Odd", "raise Base('x')", "raise SystemExit(0)",
    "sys.exit('bye')",
    "sys.exit(0)", "raise GeneratorExit", "raise KeyboardInterrupt", "raise StopIteration", "raise MemoryError",
    "raise RecursionError",
    "raise asyncio.CancelledError", "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'no')", "assert False", "1 / 0",
    "raise OSError(28, 'full')",
    "raise BaseExceptionGroup('g', [Base(), ValueError()])", "raise Warning('w')",
    "raise ValueError('a\\nb\\x1b[31m\\u202e')",
    "raise ValueError('x' * 100000)", "raise TimeoutError", "raise BrokenPipeError",
    "raise type('E', (Exception,), {})()", "f.f.f",
    "raise NotImplementedError", "raise StopAsyncIteration", "raise ImportError('no module')",
    "raise ConnectionError", "raise 3",
)  # fmt: skip
MODULES = (
    "f = 3", "f = None", "f = len", "f = lambda text: 1.0", "raise SystemExit(0)", "raise Base", "def f(text", "f = Odd",
    "import mine", "f = functools.partial(print)", "from nowhere import f", "f = NoNumber()",
    "f = type('C', (), {'__call__': 1})()",
)  # fmt: skip
"""Modules without a reward of that name that can be called."""
EXTRAS = (
    (), (), ("reward.0.max_errors=1.0",), ("reward.0.time_limit=5.0",), ("reward.0.name=mean",), ("reward.0.weight=1e300",),
    ("reward.0.n=2",),
)  # fmt: skip
"""Further settings of the recipe."""
EXPECTED = "bits plain reward"


def recipe() -> bytes:
    """Return the recipe that is trained with the reward."""
    return toml({**TOY, "steps": 2, "reward": [{"use": "mine:f"}]})


def train() -> tuple[str, ...]:
    """Return the command that trains it."""
    return ("train", "toy.toml", "--run-dir", "run", "--quiet")


def _module(draw: Draw) -> tuple[str, tuple[str, ...], bool]:
    """Draw a module, the changes, and whether it has the undamaged reward's values."""
    way = draw(st.sampled_from(("deed", "deed", "raise", "value", "signature", "module", "all")))
    if way == "module":
        text = draw(st.sampled_from(MODULES))
        return HEAD + text + "\n", (text,), False
    parts: dict[str, Any] = {}
    if way in ("signature", "all"):
        parts["signature"], parts["form"] = draw(st.sampled_from(SIGNATURES)), draw(st.sampled_from(FORMS))
    if way in ("value", "all"):
        parts["value"] = draw(st.sampled_from(NUMBERS))
    if way in ("deed", "all"):
        parts["deeds"] = tuple(draw(st.lists(st.sampled_from(DEEDS), min_size=1, max_size=3)))
    if way == "raise":
        parts["deeds"] = (draw(st.sampled_from(RAISES)),)
    if "deeds" in parts:
        parts["when"] = draw(st.sampled_from(("", "next(CALLS) == 5", "next(CALLS) > 11")))
    return source(**parts), tuple(f"{key}: {value}" for key, value in parts.items()), way == "deed"


@st.composite
def cases(draw: Any, stock: Stock) -> Case:
    """Draw a reward, and a verb that calls it."""
    text, changes, plain = _module(draw)
    extra = draw(st.sampled_from(EXTRAS))
    settings = tuple(part for one in extra for part in ("--set", one))
    command = draw(
        st.sampled_from(
            (
                Command((*train(), *settings), equals=EXPECTED if plain and not extra else ""),
                Command(("score", "--use", "mine:f", "one", "two", "我", "--reference", "one")),
                Command(("score", "--use", "mine:f", "--json"), stdin=b"one\ntwo\n"),
                Command(("check", "mine:f")),
            )
        )
    )
    tree = {"mine.py": text.encode(), "toy.toml": recipe(), "sub/file.txt": b""}
    commands = (command,)
    if command.arguments[0] == "train" and draw(st.booleans()):
        # A run that a reward stopped is refused again, or goes on.
        commands = (command, Command(("train", "--resume", "run", "--quiet")), Command(("report", "run")))
    return Case("rewards", tree, commands, changes)
