#!/usr/bin/env bash
# datasets reads a JSON string that looks like a date as a timestamp, if every row of the column does.
#
# What happens: in a JSON Lines file, "2024-05-01" is a string by the JSON standard. load_dataset("json") gives the column
# the type timestamp[s] and the row the value datetime.datetime(2024, 5, 1, 0, 0). With one other text in the column
# ("soon"), the same value stays a string. The type therefore depends on the other rows, and differs between two files of
# one data set.
#
# What one would expect: strings stay strings, as numbers in quotation marks do ("7" stays "7").
#
# Why it matters here: the column is the true answer of a question, or is put into a prompt. A reward that compares the
# model's "2024-05-01" with str(answer) compares it with "2024-05-01 00:00:00" and is never right, without an error.
# burnish reads files itself and keeps every value as it is written (burnish/data/readers.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
cat > try.py <<'PYTHON'
import datetime
import json

import datasets
import pyarrow

print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
datasets.disable_progress_bars()


def read(name, answers):
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps({"question": "?", "answer": answer}) + "\n" for answer in answers)
    rows = datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train")
    print(name, rows.features["answer"], repr(rows[0]["answer"]))
    return rows[0]["answer"]


assert read("dates", ["2024-05-01", "2024-05-02"]) == datetime.datetime(2024, 5, 1)
assert read("times", ["2024-05-01 10:30", "2024-05-01 10:31"]) == datetime.datetime(2024, 5, 1, 10, 30)
assert read("mixed", ["2024-05-01", "soon"]) == "2024-05-01"
assert read("numbers", ["7", "8"]) == "7"
print("as described")
PYTHON
HF_HUB_OFFLINE=1 HF_HOME="$folder/hub" "$folder/venv/bin/python" try.py
# Seen:
# datasets 5.2.0 pyarrow 26.0.1
# dates Value('timestamp[s]') datetime.datetime(2024, 5, 1, 0, 0)
# times Value('timestamp[s]') datetime.datetime(2024, 5, 1, 10, 30)
# mixed Value('string') '2024-05-01'
# numbers Value('string') '7'
# as described
