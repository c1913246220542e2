"""Train the news recipe with a reward of your own. Arguments change the recipe: custom_reward.py steps=50 seed=1"""

import sys

import burnish


@burnish.reward
def brevity(completion: burnish.Completion) -> float:
    return 1.0 / (1 + len(completion.text.split()))


result = burnish.train("news", rewards={"bleu": 1.0, brevity: 0.2}, steps=20, overrides=sys.argv[1:])
print(result.report)
