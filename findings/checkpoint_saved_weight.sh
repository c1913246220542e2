#!/usr/bin/env bash
# Inside gradient checkpointing, a custom function's saved weight is another tensor than the weight, without a word.
#
# What happens: an autograd function saves its weight and, in its backward pass, adds to `weight.grad` in place and
# returns None, as fused kernels do to spare an allocation. Outside of checkpointing the saved tensor is the parameter
# itself. Inside torch.utils.checkpoint (use_reentrant=False, the recommended form) it is a detached copy of the same
# memory: the gradient goes to the copy's `grad`, and the parameter's stays None. Nothing is raised, and the gradient of
# the inputs is right. A parameter that the function keeps as a plain attribute (`ctx.weight = weight`) works in both.
#
# What one would expect: a saved leaf comes back as that leaf, as it does without checkpointing, or a warning.
#
# Why it matters here: such a kernel passes its tests and trains nothing as soon as a user turns checkpointing on. A
# test of burnish that compares the gradients with and without checkpointing met it; its kernel keeps the parameter
# (burnish/policies/kernels/linear.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
cat > "$folder/try.py" <<'PYTHON'
import torch
from torch.utils.checkpoint import checkpoint

print("torch", torch.__version__)
saved = []


class Linear(torch.autograd.Function):
    """x W^T, whose weight's gradient is added to `grad` in place."""

    @staticmethod
    def forward(ctx, rows, weight, keeps):
        ctx.save_for_backward(rows, weight)
        ctx.weight = weight if keeps else None
        return rows @ weight.T

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        saved.append(weight)
        target = weight if ctx.weight is None else ctx.weight
        added = grad.T @ rows
        target.grad = added if target.grad is None else target.grad + added
        return grad @ weight, None, None


for checkpointed in (False, True):
    for keeps in (False, True):
        weight = torch.nn.Parameter(torch.ones(2, 3))
        rows = torch.arange(12.0).view(4, 3).requires_grad_()
        arguments = rows, weight, keeps
        output = checkpoint(Linear.apply, *arguments, use_reentrant=False) if checkpointed else Linear.apply(*arguments)
        output.sum().backward()
        same, memory = saved[-1] is weight, saved[-1].data_ptr() == weight.data_ptr()
        trained = weight.grad is not None
        print(
            f"checkpointed {checkpointed!s:6}attribute {keeps!s:6}saved is the weight: {same!s:6}same memory: {memory}  "
            f"gradient: {weight.grad.tolist() if trained else None}"
        )
        assert same is not checkpointed and memory
        assert trained is (keeps or not checkpointed)
        assert torch.equal(rows.grad, torch.full((4, 3), 2.0))
print("as described")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/try.py"
# Seen:
# torch 2.13.0+cpu
# checkpointed False attribute False saved is the weight: True  same memory: True  gradient: [[18.0, 22.0, 26.0], [18.0, 22.0, 26.0]]
# checkpointed False attribute True  saved is the weight: True  same memory: True  gradient: [[18.0, 22.0, 26.0], [18.0, 22.0, 26.0]]
# checkpointed True  attribute False saved is the weight: False same memory: True  gradient: None
# checkpointed True  attribute True  saved is the weight: False same memory: True  gradient: [[18.0, 22.0, 26.0], [18.0, 22.0, 26.0]]
# as described
