"""Ask a model a question, and its probability of an answer. An argument names another model: ask_a_model.py runs/mine"""

import sys

import burnish

model = burnish.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
question = "What is the capital of France?"

if model.has_chat_template:
    print(model.chat(question, temperature=0, max_new_tokens=40))
    print(model.chat([{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": question}]))

for completion in model.generate("The capital of France is", plain=True, samples=3, temperature=0.7, max_new_tokens=12):
    print(repr(completion.text), sum(completion.sampler_logprobs))

for answer in (" Paris", " London"):
    print(answer, model.logprobs("The capital of France is", answer, plain=True).sum())
