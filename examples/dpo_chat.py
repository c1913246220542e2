"""Direct preference optimisation of a chat model through its template, on three seeds.

Each pair is two answers to one question: the chosen one is short, the rejected one explains itself first. Every sixth
pair is labelled the other way round, as people's labels are, so the best accuracy is 5/6. The pairs are rows of the
conversational shape, given as Python objects. For each seed, prints the held-out preference accuracy before and after
(1/2 before: the policy is the reference) and the 95% interval of the difference.

    python examples/dpo_chat.py                      # SmolLM2-135M-Instruct, three seeds, on one core
    python examples/dpo_chat.py policy.model=MODEL   # another chat model; further settings as section.key=value
"""

import itertools
import sys

import burnish

TOPICS = "rain bread maps bees glass salt tides clocks paper wool bridges owls tea rope lamps soil ice bells ink sails"
QUESTIONS = [
    "What is {} good for?",
    "Why do people like {}?",
    "Tell me something about {}.",
    "Who needs {}?",
    "Is there more to say about {}?",
]
SHORT = "{} helps people every day."
LONG = "That is a very interesting question about {}, and before I answer it, let me say a few words about myself."


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def pair(topic: str, question: str, *, wrong: bool) -> dict[str, list[dict[str, str]]]:
    short = [message("assistant", SHORT.format(topic.capitalize()))]
    long = [message("assistant", LONG.format(topic))]
    return {
        "prompt": [message("system", "Answer in one sentence."), message("user", question.format(topic))],
        "chosen": long if wrong else short,
        "rejected": short if wrong else long,
    }


PAIRS = [
    pair(topic, question, wrong=index % 6 == 5)
    for index, (topic, question) in enumerate(itertools.product(TOPICS.split(), QUESTIONS))
]

RECIPE = {
    "kind": "prefer",
    "name": "dpo_chat",
    "steps": 8,
    "policy": {"model": "smollm2-135m"},
    "preference": {"use": "dpo", "beta": 0.1},
    "data": {"use": "data", "held_out_percent": 30},
    "batch": {"examples_per_step": 4, "max_tokens": 128},
    "optimizer": {"learning_rate": 5e-6},
}

if __name__ == "__main__":
    for seed in range(3):
        result = burnish.prefer(RECIPE, rows=PAIRS, seed=seed, overrides=sys.argv[1:])
        row = result.evaluation["preference_accuracy"]
        low, high = row["interval"]
        change = f"{row['before']:.2f} -> {row['after']:.2f}, {row['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        print(f"seed {seed}: held-out preference accuracy {change}, {row['n']} prompts")
