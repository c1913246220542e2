#!/usr/bin/env bash
# glin-profanity's Chinese list holds names and pieces of ordinary words, and matches them inside of other words.
#
# What happens: sentences about the time of a meeting, a county, a slap, gymnastics and a market are reported as profane.
# The entries are two or three characters long, some of them misspelt swear words, and Chinese has no blanks between
# words that would tell a whole word from a piece of one.
#
# What one would expect: a list for Chinese is matched at the boundaries of words, or holds no entry that is common
# within them; the county is no swear word.
#
# Why it matters here: a reward by this list would teach a model to avoid the time of day. burnish's `toxicity` leaves
# these entries out, and its content filter scores them below the threshold.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check glin-profanity==4.1.0
cat > "$folder/try.py" <<'PYTHON'
from importlib.metadata import version

from glin_profanity import Filter

print("glin-profanity", version("glin-profanity"))
checker = Filter({"languages": ["chinese"]})
sentences = {
    "会议在13点开始。": ["13点"],  # the meeting begins at one o'clock
    "他是肥西县人。": ["肥西"],  # he is from Feixi county
    "老师打了他几巴掌。": ["几巴"],  # the teacher slapped him several times
    "她在体操比赛中得了第一名。": ["操比"],  # she came first in gymnastics
    "这里有西瓜批发市场。": ["瓜批"],  # there is a wholesale market for melons
    "我们去吃晚饭。": [],  # we go to dinner
}
for sentence, expected in sentences.items():
    matches = [match["word"] for match in checker.check_profanity(sentence).get("matches", ())]
    print(sentence, matches)
    assert matches == expected
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
# Seen:
# glin-profanity 4.1.0
# 会议在13点开始。 ['13点']
# 他是肥西县人。 ['肥西']
# 老师打了他几巴掌。 ['几巴']
# 她在体操比赛中得了第一名。 ['操比']
# 这里有西瓜批发市场。 ['瓜批']
# 我们去吃晚饭。 []
# as described
