"""Train on conversations with reward functions as TRL's GRPOTrainer takes them: trl_rewards.py [KEY=VALUE ...]"""

import json
import re
import sys

import burnish

ROWS = [
    {"prompt": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": str(a + b)}
    for a in range(6)
    for b in range(6)
]


def format_reward(completions, **kwargs):
    return [1.0 if re.search(r"<answer>.*</answer>", completion[0]["content"]) else 0.0 for completion in completions]


def accuracy_reward(completions, answer, **kwargs):
    return [float(true in completion[0]["content"]) for completion, true in zip(completions, answer, strict=True)]


if __name__ == "__main__":
    with open("sums.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    result = burnish.train(
        {"name": "sums", "task": {"use": "data", "path": "sums.jsonl"}},
        rewards=[format_reward, accuracy_reward],
        overrides=sys.argv[1:],
    )
    print(result.report)
