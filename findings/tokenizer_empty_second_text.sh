#!/usr/bin/env bash
# A fast tokenizer of transformers takes a pair whose second text is empty for a single text, but not in a batch.
#
# What happens: tokenizer(first, second) ends the second text with a separator of its own. With second = "" the ids are
# those of the first text alone: that separator is missing. tokenizer([first], [""]) and the package tokenizers, given
# the same pair, write it.
#
# What one would expect: the same ids from both forms of the call. An empty text is a text; None means that there is
# none.
#
# Why it matters here: a sequence classifier that scores (prompt, answer) pairs reads an empty answer in another form
# than every other answer, and its score depends on whether answers are encoded one by one or as a batch. burnish always
# encodes batches (the reward `classifier`).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
cat > try.py <<'PYTHON'
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
words = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "why": 3, "because": 4}
file = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
file.pre_tokenizer = pre_tokenizers.Whitespace()
file.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=file, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
for second in ("because", ""):
    alone = tokenizer("why", second)["input_ids"]
    batch = tokenizer(["why"], [second])["input_ids"][0]
    below = file.encode("why", second).ids
    print(repr(second), "alone", alone, "batch", batch, "tokenizers", below)
    assert batch == below
    assert (alone == batch) is (second != "")
print("as described")
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" try.py
# Seen:
# transformers 5.24.0 tokenizers 0.23.3
# 'because' alone [0, 3, 1, 4, 1] batch [0, 3, 1, 4, 1] tokenizers [0, 3, 1, 4, 1]
# '' alone [0, 3, 1] batch [0, 3, 1, 1] tokenizers [0, 3, 1, 1]
# as described
