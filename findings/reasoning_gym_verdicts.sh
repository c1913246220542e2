#!/usr/bin/env bash
# Some verifiers of reasoning-gym accept wrong answers, one generator writes files, and seeds 0 and 1 ask the same.
#
# What happens: score_answer is 1.0 for 0 where a coin_flip question has the answer 0.3125, and for 1*3*5 + 9 where
# puzzle24 gives the numbers 5, 6, 8 and 10. number_sorting gives 1.0 to a list in which each number is 0.9 off.
# Question 448 of codeio with seed 0 writes sailor_performance.csv into the working folder. list_functions gives another
# question at the second pass over one data set. Of 200 products each, seeds 0 and 1 share 199.
#
# What one would expect: full credit for right answers alone; questions that are a function of the seed; no files; and
# another seed for other questions.
#
# Why it matters here: a policy finds an answer that always pays before it learns the task, and a held-out set of
# another seed is the training set. burnish refuses these generators by name, apart from number_sorting, whose tolerance
# docs and docstring name, and list_functions, for which it seeds the global random state; it spreads seeds
# (burnish/tasks/generators.py). bench/generators.py tries every generator of an installed version.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/try.py" <<'PYTHON'
import contextlib
import io
import json
import os
from importlib.metadata import version

from reasoning_gym import create_dataset

print("reasoning-gym", version("reasoning-gym"))

dataset = create_dataset("coin_flip", seed=0, size=40)
accepted = [entry["answer"] for entry in dataset if dataset.score_answer("0", entry) == 1.0]
print("coin_flip: 0 is right for", len(accepted), "of 40 questions, with answers such as", accepted[0])
assert len(accepted) > 20 and accepted[0].startswith("0.")

dataset = create_dataset("puzzle24", seed=0, size=10)
entries = list(dataset)
full = sum(dataset.score_answer("1*3*5 + 9", entry) == 1.0 for entry in entries)
print("puzzle24: 1*3*5 + 9 is right for", full, "of 10 questions, such as", entries[1]["metadata"]["numbers"])
assert full == 10

dataset = create_dataset("number_sorting", seed=0, size=10, min_numbers=3, max_numbers=4)
entry = dataset[0]
wrong = json.dumps([str(round(float(number) + 0.9, 2)) for number in json.loads(entry["answer"].replace("'", '"'))])
print("number_sorting:", wrong, "for", entry["answer"], dataset.score_answer(wrong, entry))
assert dataset.score_answer(wrong, entry) == 1.0

with contextlib.redirect_stdout(io.StringIO()):
    create_dataset("codeio", seed=0, size=500)[448]
print("codeio: question 448 wrote", os.listdir("."))
assert os.listdir(".") == ["sailor_performance.csv"]

dataset = create_dataset("list_functions", seed=0, size=20)
same = sum(one["question"] == other["question"] for one, other in zip(list(dataset), list(dataset), strict=True))
print("list_functions:", same, "of 20 questions are the same at the second pass")
assert same < 20

questions = []
for seed in (0, 1):
    dataset = create_dataset("products", seed=seed, size=200, min_digits=6, max_digits=8)
    questions.append({entry["question"] for entry in dataset})
print("products: seeds 0 and 1 share", len(questions[0] & questions[1]), "of 200 questions")
assert len(questions[0] & questions[1]) == 199
print("as described")
PYTHON
mkdir "$folder/empty"
cd "$folder/empty"
"$folder/venv/bin/python" "$folder/try.py"
# Seen:
# reasoning-gym 0.1.25
# coin_flip: 0 is right for 37 of 40 questions, with answers such as 0.3125
# puzzle24: 1*3*5 + 9 is right for 10 of 10 questions, such as [8, 5, 10, 6]
# number_sorting: ["-91.0", "-1.9", "52.5", "94.5"] for ['-91.9', '-2.8', '51.6', '93.6'] 1.0
# codeio: question 448 wrote ['sailor_performance.csv']
# list_functions: 19 of 20 questions are the same at the second pass
# products: seeds 0 and 1 share 199 of 200 questions
# as described
