"""A synthetic run folder in the format of ``burnish train``: 25 steps, 60 held-out prompts in English and Chinese."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

STEPS = 25

ENGLISH = [
    (
        "BRUSSELS, March 3 - European energy ministers agreed on Tuesday to extend the bloc's gas storage targets",
        " by two years, while giving member states more room to decide when in the season they fill their reserves.",
    ),
    (
        "The city council voted late on Monday to close the old harbour bridge to cars from May,",
        " a step that shopkeepers on the eastern bank had opposed for most of the past decade.",
    ),
    (
        "Scientists aboard a research vessel in the Southern Ocean have recorded the lowest extent of sea ice",
        " since satellite measurements began in 1979, according to figures published in the journal this week.",
    ),
    (
        "Shares in the carmaker fell 4.2 percent in early trading after it cut its outlook for the year,",
        " citing weaker demand in Asia and a stronger currency.",
    ),
]
CHINESE = [
    (
        "新华社北京三月三日电 国家统计局周二公布的数据显示，今年前两个月全国工业生产",
        "同比增长百分之五点九，增速比去年十二月份回落零点三个百分点。",
    ),
    ("记者昨日从市交通局获悉，连接老城与新区的第三条地铁线将于", "五月一日起试运行，初期每天开行二百四十列次。"),
]
BEFORE = [
    ' and that\'s a lot of what you can do with this, the "new" thing is 17 (see: bananas).\n\n* A list\n* B',
    " in the way that purple committees often sing; nobody asked the lamp, said the lamp, whose brother owns a kayak.",
    "，这个问题我不太清楚 but maybe the answer 是：香蕉、铁路，还有三只会唱歌的猫。",
]
AFTER = [
    " by the end of the year, the government said in a statement on Tuesday.",
    " as officials said the plan would be put to a vote later this month.",
    "，有关部门表示，将进一步加强监管，推动相关工作稳步开展。",
]


def write_run(folder: Path, *, steps: int = STEPS, prompts: int = 60) -> Path:
    """Write every file of a successful run whose text became slightly blander."""
    rng = random.Random(0)
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    write_json(folder / "environment.json", ENVIRONMENT)
    write_lines(folder / "metrics.jsonl", [metrics(step, rng) for step in range(1, steps + 1)])
    write_lines(folder / "samples.jsonl", [sample(step, i, rng) for step in (steps - 1, steps) for i in range(24)])
    write_lines(folder / "warnings.jsonl", WARNINGS)
    write_json(folder / "evaluation.json", EVALUATION)
    for when, texts, level in (("before", BEFORE, -3.5), ("after", AFTER, -2.95)):
        rows = [held_out(i, texts, level, rng) for i in range(prompts)]
        write_json(folder / "evaluation" / f"{when}.json", {"samples": rows})
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_bytes(json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def write_lines(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def metrics(step: int, rng: random.Random) -> dict:
    share = 1 - math.exp(-step / 12)
    generate, score, update = rng.gauss(7.9, 0.4), rng.gauss(3.1, 0.2), rng.gauss(8.2, 0.3)
    tokens = rng.randint(1020, 1130)
    row = {
        "step": step,
        "reward/mean": -3.52 + 0.6 * share + rng.gauss(0, 0.11),
        "reward/std": 0.62 - 0.1 * share + rng.gauss(0, 0.04),
        "reward/perplexity": -3.61 + 0.55 * share + rng.gauss(0, 0.1),
        "reward/bleu": 0.011 + 0.006 * share + rng.gauss(0, 0.002),
        "kl": 0.045 * share**2 + abs(rng.gauss(0, 0.0015)),
        "mismatch_kl": abs(rng.gauss(3e-8, 1e-8)),
        "entropy": 3.05 - 0.5 * share + rng.gauss(0, 0.05),
        "clip_fraction": max(0.0, rng.gauss(0.004, 0.003)),
        "loss": rng.gauss(0, 0.02),
        "grad_norm": abs(rng.gauss(1.5, 0.35)),
        "learning_rate": 1e-5,
        "length/mean": 44.6 - 1.5 * share + rng.gauss(0, 0.8),
        "length/std": 8.0 + rng.gauss(0, 0.6),
        "truncated": min(1.0, max(0.0, 0.82 - 0.1 * share + rng.gauss(0, 0.04))),
        "tokens": tokens,
        "tokens_per_second": tokens / generate,
        "diversity/distinct_1": 0.79 - 0.03 * share + rng.gauss(0, 0.008),
        "diversity/distinct_2": 0.948 - 0.03 * share + rng.gauss(0, 0.006),
        "diversity/longest_repeat": rng.randint(2, 5),
        "time/generate": generate,
        "time/score": score,
        "time/update": update,
        "time/step": generate + score + update + 0.4,
        "sampler/cache_hits": rng.randint(10, 40),
    }
    if step % 10 == 0:
        row["held_out/reward"] = -3.54 + 0.62 * share + rng.gauss(0, 0.03)
        row["held_out/bleu"] = 0.44 + 0.4 * share
    return row


def prompt(i: int) -> tuple[str, str]:
    texts = CHINESE if i % 5 == 4 else ENGLISH
    return texts[i // 5 % len(texts) if i % 5 == 4 else i % len(texts)]


def sample(step: int, i: int, rng: random.Random) -> dict:
    reward = rng.gauss(-3.0, 0.5)
    text = rng.choice(AFTER if reward > -3 else BEFORE)
    return {
        "step": step,
        "prompt_id": f"news-{i // 6}",
        "prompt": prompt(i // 6)[0],
        "completion": text,
        "reward": reward,
        "parts": {"perplexity": reward - 0.05, "bleu": 0.012},
        "advantage": reward + 3.0,
        "flags": ["repetition"] if i == 7 else [],
        "finish_reason": "length" if i % 3 else "stop",
        "tokens": 44,
    }


def held_out(i: int, texts: list[str], level: float, rng: random.Random) -> dict:
    head, truth = prompt(i)
    reward = rng.gauss(level, 0.45)
    return {
        "prompt_id": f"held-out-{i:03}",
        "prompt": head,
        "reference": truth,
        "text": texts[2] if i % 5 == 4 else texts[i % 2],
        "reward": reward,
        "parts": {"perplexity": reward - 0.05, "bleu": abs(rng.gauss(0.012, 0.004))},
        "tokens": 44,
        "finish_reason": "length" if i % 4 else "stop",
    }


def _entry(before: float, after: float, low: float, high: float, p: float, better: str | None) -> dict:
    difference = after - before
    return {
        "before": before,
        "after": after,
        "difference": difference,
        "interval": [low, high],
        "p_value": p,
        "n": 60,
        "better": better,
    }


EVALUATION = {
    "reward": _entry(-3.541, -3.002, 0.36, 0.71, 0.001, "higher"),
    "reward/perplexity": _entry(-3.585, -3.071, 0.34, 0.69, 0.001, "higher"),
    "reward/bleu": _entry(0.0110, 0.01725, 0.0021, 0.0104, 0.004, "higher"),
    "perplexity": _entry(36.72, 21.83, -19.0, -11.2, 0.001, "lower"),
    "truth_perplexity": _entry(15.71, 15.63, -0.21, 0.06, 0.25, "lower"),
    "bleu": _entry(0.44, 0.85, 0.08, 0.77, 0.012, "higher"),
    "chrf": _entry(14.2, 15.9, 0.7, 2.8, 0.002, "higher"),
    "distinct_1": _entry(0.781, 0.767, -0.031, 0.004, 0.11, "higher"),
    "distinct_2": _entry(0.947, 0.918, -0.041, -0.018, 0.001, "higher"),
    "length": _entry(44.6, 43.2, -2.6, -0.3, 0.013, None),
}

WARNINGS = [
    {"step": 21, "text": "reward rises while distinct-2 falls: 0.948 at the start, 0.915 now"},
    {"step": 22, "text": "reward rises while distinct-2 falls: 0.948 at the start, 0.915 now"},
    {"step": 24, "text": "3 of 24 completions repeat a passage of 8 words or more"},
]

ENVIRONMENT = {
    "burnish": "0.1.0",
    "python": "3.11.9",
    "torch": "2.13.0",
    "transformers": "5.1.0",
    "platform": "Linux x86_64, glibc 2.36",
    "cpu": "2 cores",
    "memory": "16 GB",
    "git_commit": "f5e39a0c",
    "seed": 0,
    "threads": 2,
    "device": {"type": "cpu", "dtype": "float32"},
    "gpu": None,
}

RECIPE = """name = "news"
seed = 0
steps = 25

[policy]
use = "causal_lm"
model = "smollm2-135m"

[task]
use = "news"

[sampling]
prompts_per_step = 4
samples_per_prompt = 6
max_new_tokens = 48

[algorithm]
use = "grpo"

[algorithm.kl]
coefficient = 0.02
estimator = "k3"
where = "loss"

[[reward]]
use = "perplexity"
weight = 1.0

[[reward]]
use = "bleu"
weight = 4.0
"""
