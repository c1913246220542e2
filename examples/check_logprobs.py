"""Hold a run with record_tokens = true against plain transformers: check_logprobs.py RUN [MODEL]

MODEL is what training started from, a folder or a hub id. Without it, only steps after a checkpoint are compared.
"""

import json
import sys
import tomllib
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import generation as g

run, base = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
sampling = recipe["sampling"]
if sampling["min_new_tokens"] > 0:
    sys.exit("sampling.min_new_tokens depends on the position in the text and is not computed here")
warpers = g.LogitsProcessorList([g.TemperatureLogitsWarper(sampling["temperature"])])
if sampling["top_k"] > 0:
    warpers.append(g.TopKLogitsWarper(sampling["top_k"]))
if sampling["top_p"] < 1:
    warpers.append(g.TopPLogitsWarper(sampling["top_p"]))
if sampling["min_p"] > 0:
    warpers.append(g.MinPLogitsWarper(sampling["min_p"]))


def load(source):
    if (Path(source) / "adapter_config.json").exists():
        return PeftModel.from_pretrained(load(base), source)
    return AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, recipe["policy"]["dtype"]))


@torch.no_grad()
def logprobs(model, tokens, row):
    """Return the log-probability of each token, from one forward pass of one text."""
    prompt, answer = row["prompt_ids"], torch.tensor(row["token_ids"])
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].float()
    padding = torch.ones(logits.shape[-1], dtype=torch.bool).index_fill(0, tokens[tokens < logits.shape[-1]], False)
    scores = warpers(None, logits.masked_fill(padding, -torch.inf))  # rows without a token are never sampled
    return scores.log_softmax(-1).gather(-1, answer[:, None]).flatten()


def distance(values, row, key):
    return float((values - torch.tensor(row[key])).abs().max())


rows = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
models = {int(folder.name.removeprefix("step-")): folder / "model" for folder in (run / "checkpoints").glob("step-*")}
if base is not None:
    models[0] = base
worst = 0.0
for step, source in sorted(models.items()):
    sampled = [row for row in rows if row["step"] == step + 1]  # by the weights after this step
    if not sampled:
        continue
    model, vocabulary = load(source).eval(), AutoTokenizer.from_pretrained(source).get_vocab()
    tokens = torch.tensor(sorted(vocabulary.values()))
    pairs = [(logprobs(model, tokens, row), row) for row in sampled]
    sampler = max(distance(values, row, "sampler_logprobs") for values, row in pairs)
    policy = max(distance(values, row, "logprobs") for values, row in pairs)
    print(f"step {step + 1}: {len(sampled)} samples, largest difference {sampler:.1e} (sampler), {policy:.1e} (policy)")
    worst = max(worst, sampler, policy)
sys.exit(worst > 1e-4)
