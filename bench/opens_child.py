"""Continues prompts greedily with one program: run by ``bench.opens`` under that program's own interpreter.

``python bench/opens_child.py KIND PATH [BASE]`` reads ``{"prompts": [...], "tokens": N}`` from standard input and writes
``{"program": ..., "prompt_ids": [...], "texts": [...]}`` as its last line. It imports nothing of burnish.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# vLLM reserves more memory than a laptop has, and binds its threads itself.
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", OMP_WAIT_POLICY="passive")
os.environ.pop("OMP_NUM_THREADS", None)


def transformers(path: str, base: str, prompts: list[str], tokens: int) -> dict[str, Any]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    return {"program": f"transformers {transformers.__version__}", **_generate(model, path, prompts, tokens)}


def peft(path: str, base: str, prompts: list[str], tokens: int) -> dict[str, Any]:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(model, path)
    program = f"peft {peft.__version__}, transformers {transformers.__version__}"
    return {"program": program, **_generate(adapted, path, prompts, tokens)}


def _generate(model: Any, path: str, prompts: list[str], tokens: int) -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    ids, texts = [], []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
        ids.append(inputs["input_ids"][0].tolist())
        texts.append(tokenizer.decode(output[0, len(ids[-1]) :], skip_special_tokens=True))
    return {"prompt_ids": ids, "texts": texts}


def llama(path: str, base: str, prompts: list[str], tokens: int) -> dict[str, Any]:
    import llama_cpp

    model = llama_cpp.Llama(path, n_ctx=512, n_threads=1, verbose=False)
    ids, texts = [], []
    for prompt in prompts:
        ids.append(model.tokenize(prompt.encode(), add_bos=True, special=True))
        answer = model.create_completion(ids[-1], max_tokens=tokens, temperature=0.0, repeat_penalty=1.0)
        texts.append(answer["choices"][0]["text"])
    return {"program": f"llama-cpp-python {llama_cpp.__version__}", "prompt_ids": ids, "texts": texts}


def vllm(path: str, base: str, prompts: list[str], tokens: int) -> dict[str, Any]:
    import vllm

    model = vllm.LLM(path, dtype="float32", enforce_eager=True, max_model_len=512, disable_log_stats=True)
    outputs = model.generate(prompts, vllm.SamplingParams(temperature=0.0, max_tokens=tokens), use_tqdm=False)
    ids = [list(output.prompt_token_ids) for output in outputs]
    return {"program": f"vllm {vllm.__version__}", "prompt_ids": ids, "texts": [one.outputs[0].text for one in outputs]}


if __name__ == "__main__":
    job = json.load(sys.stdin)
    programs = {"transformers": transformers, "peft": peft, "llama": llama, "vllm": vllm}
    result = programs[sys.argv[1]](sys.argv[2], (sys.argv[3:] or [""])[0], job["prompts"], job["tokens"])
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # engines with worker processes may hang at exit
