"""Loops over the rows of a decoding step, compiled by numba. Import through ``loops``, which knows whether they can run.

Each loop takes the addresses of its tensors, which are float32 or int64, and computes the rows of one thread. numba
keeps the machine code beside this file or in the user's cache folder. An exponential is a polynomial of degree 6 after
reduction by powers of two (Cephes), exact to two units in the last place.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite.binding
import llvmlite.ir
import numpy as np
import torch
from numba import carray, cfunc, float32, int64, njit, types
from numba.extending import intrinsic
from torch import Tensor

MATH = {"reassoc", "contract", "nsz", "arcp"}
"""Freedoms of the compiler with floating-point numbers; NaN and infinity keep their meaning."""
ARGUMENTS = 32
CHUNK = 64
LONGEST, SHORTEST = 88.0, -87.0
"""Exponents beyond which float32 overflows, and is no longer normal."""


def _find_openmp() -> Any:
    """Return the GNU OpenMP library that torch uses, or None: threads of another library would compete with torch's."""
    folder = Path(torch.__file__).parent
    for path in (*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")):
        with suppress(AttributeError, OSError):  # another system, or a library that is not in use
            return ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    return None


_OPENMP = _find_openmp()
USES_THREADS = _OPENMP is not None
"""Whether a loop runs in all of torch's threads."""
_number = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0) if _OPENMP is None else _OPENMP.omp_get_thread_num
llvmlite.binding.add_symbol("burnish_thread", ctypes.cast(_number, ctypes.c_void_p).value)
_thread_number = types.ExternalFunction("burnish_thread", types.int32())
if _OPENMP is not None:
    _OPENMP.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]


@intrinsic
def _floats(context: Any, address: Any) -> Any:
    """Return the pointer to the float32 numbers at an address."""
    return types.CPointer(types.float32)(types.int64), _to_pointer


@intrinsic
def _integers(context: Any, address: Any) -> Any:
    """Return the pointer to the int64 numbers at an address."""
    return types.CPointer(types.int64)(types.int64), _to_pointer


def _to_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.inttoptr(args[0], context.get_value_type(signature.return_type))


@intrinsic
def _power_of_two(context: Any, exponent: Any) -> Any:
    """Return two to the power of a whole float32 number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = llvmlite.ir.IntType(32)
        biased = builder.add(builder.fptosi(args[0], word), llvmlite.ir.Constant(word, 127))
        return builder.bitcast(builder.shl(biased, llvmlite.ir.Constant(word, 23)), llvmlite.ir.FloatType())

    return types.float32(types.float32), generate


@njit(inline="always", fastmath=MATH)
def _exp(x: Any) -> Any:
    y = max(min(x, float32(LONGEST)), float32(SHORTEST))
    n = np.floor(y * float32(1.44269504088896341) + float32(0.5))
    y = y - n * float32(0.693359375)
    y = y - n * float32(-2.12194440e-4)
    z = float32(1.9875691500e-4)
    z = z * y + float32(1.3981999507e-3)
    z = z * y + float32(8.3334519073e-3)
    z = z * y + float32(4.1665795894e-2)
    z = z * y + float32(1.6666665459e-1)
    z = z * y + float32(5.0000001201e-1)
    z = (z * y * y + y + float32(1)) * _power_of_two(n)
    return x if x != x else z  # min and max drop NaN


@njit(fastmath=MATH, error_model="numpy")
def _scores(scores: Any, queries: Any, keys: Any, count: int, first: int) -> None:
    heads, width = queries.shape
    for u in range(count):
        key = keys[u]
        for h in range(heads):
            query, total = queries[h], float32(0)
            for j in range(width):
                total += query[j] * key[j]
            scores[h, first + u] = total


@njit(fastmath=MATH, error_model="numpy")
def _add_values(output: Any, weights: Any, values: Any, count: int, first: int) -> None:
    heads, width = output.shape
    for u in range(count):
        value = values[u]
        for h in range(heads):
            target, weight = output[h], weights[h, first + u]
            for j in range(width):
                target[j] += weight * value[j]


@njit(fastmath=MATH, error_model="numpy")
def _softmax(scores: Any, count: int) -> Any:
    """Turn the first scores of a row into weights, and return their log-sum-exp."""
    row = scores[:count]
    largest, total = row[0], float32(0)
    for u in range(count):
        largest = max(largest, row[u])
    for u in range(count):
        row[u] = _exp(row[u] - largest)
        total += row[u]
    for u in range(count):
        row[u] /= total
    return largest + np.log(total)


@njit(inline="always")
def _arguments(data: Any) -> Any:
    """Return a loop's integers and addresses, its float32 numbers, and the first and the last row of this thread."""
    numbers = carray(data, ARGUMENTS + 3)
    rows, threads = numbers[ARGUMENTS + 1], numbers[ARGUMENTS + 2]
    thread = int64(_thread_number())
    floats = carray(_floats(numbers[ARGUMENTS]), ARGUMENTS)
    return numbers, floats, rows * thread // threads, rows * (thread + 1) // threads


_loop = cfunc("void(CPointer(int64))", cache=True, fastmath=MATH, error_model="numpy")


@_loop
def _rms_norm(data: Any) -> None:
    a, floats, first, last = _arguments(data)
    states, normed = carray(_floats(a[0]), (last, a[1])), carray(_floats(a[3]), (last, a[1]))
    weight = carray(_floats(a[2]), a[1])
    for t in range(first, last):
        row, output, total = states[t], normed[t], float32(0)
        for j in range(len(row)):
            total += row[j] * row[j]
        factor = float32(1) / np.sqrt(total / float32(len(row)) + floats[4])
        for j in range(len(row)):
            output[j] = row[j] * factor * weight[j]


@_loop
def _rms_norm_grads(data: Any) -> None:
    """Rows are chunks of CHUNK rows of the states, whose contributions to the weight's gradient are summed apart."""
    a, floats, first, last = _arguments(data)
    rows, width = a[0], a[1]
    grads, states = carray(_floats(a[2]), (rows, width)), carray(_floats(a[3]), (rows, width))
    weight, states_grads = carray(_floats(a[4]), width), carray(_floats(a[5]), (rows, width))
    weight_grads = carray(_floats(a[6]), (last, width))
    for chunk in range(first, last):
        sums = weight_grads[chunk]
        for t in range(chunk * CHUNK, min(rows, (chunk + 1) * CHUNK)):
            grad, row, target, squares, product = grads[t], states[t], states_grads[t], float32(0), float32(0)
            for j in range(len(row)):
                squares += row[j] * row[j]
                product += grad[j] * weight[j] * row[j]
            factor = float32(1) / np.sqrt(squares / float32(len(row)) + floats[7])
            shift = factor * factor * factor * product / float32(len(row))
            for j in range(len(row)):
                target[j] = grad[j] * weight[j] * factor - row[j] * shift
            if a[6] != 0:
                for j in range(len(row)):
                    sums[j] += grad[j] * row[j] * factor


@_loop
def _gate(data: Any) -> None:
    a, _, first, last = _arguments(data)
    output = carray(_floats(a[4]), (last, a[5]))
    for t in range(first, last):
        gate, up, target = (
            carray(_floats(a[0] + 4 * t * a[1]), a[5]), carray(_floats(a[2] + 4 * t * a[3]), a[5]), output[t],
        )  # fmt: skip
        for j in range(len(target)):
            target[j] = gate[j] / (float32(1) + _exp(-gate[j])) * up[j]


@_loop
def _gate_grads(data: Any) -> None:
    a, _, first, last = _arguments(data)
    shape = (last, a[5])
    grads, gates, ups = carray(_floats(a[0]), shape), carray(_floats(a[1]), shape), carray(_floats(a[2]), shape)
    gate_grads, up_grads = carray(_floats(a[3]), shape), carray(_floats(a[4]), shape)
    for t in range(first, last):
        grad, gate, up, gate_grad, up_grad = grads[t], gates[t], ups[t], gate_grads[t], up_grads[t]
        for j in range(len(grad)):
            sigmoid = float32(1) / (float32(1) + _exp(-gate[j]))
            gate_grad[j] = grad[j] * up[j] * sigmoid * (float32(1) + gate[j] * (float32(1) - sigmoid))
            up_grad[j] = grad[j] * gate[j] * sigmoid


@_loop
def _rotate(data: Any) -> None:
    """The source may be the target. Backward, rows are multiplied by the transposed matrices."""
    a, _, first, last = _arguments(data)
    heads, width, backward = a[0], a[1], a[8] != 0
    half = width // 2
    all_cosines, all_sines = carray(_floats(a[6]), (last, 2, half)), carray(_floats(a[7]), (last, 2, half))
    for t in range(first, last):
        cosines, sines = all_cosines[t], all_sines[t]
        for h in range(heads):
            source = carray(_floats(a[2] + 4 * (t * a[3] + h * width)), (2, half))
            target = carray(_floats(a[4] + 4 * (t * a[5] + h * width)), (2, half))
            left, right, new_left, new_right = source[0], source[1], target[0], target[1]
            for j in range(half):
                x, y = left[j], right[j]
                if backward:
                    new_left[j] = x * cosines[0, j] + y * sines[1, j]
                    new_right[j] = y * cosines[1, j] - x * sines[0, j]
                else:
                    new_left[j] = x * cosines[0, j] - y * sines[0, j]
                    new_right[j] = y * cosines[1, j] + x * sines[1, j]


@_loop
def _attend(data: Any) -> None:
    a, floats, first, last = _arguments(data)
    heads, group, width, prompt_room, room = a[0], a[1], a[2], a[3], a[4]
    prompt_lengths, groups, lengths = (
        carray(_integers(a[17]), last), carray(_integers(a[18]), last), carray(_integers(a[19]), last),
    )  # fmt: skip
    outputs = carray(_floats(a[20]), (last, heads, group, width))
    scores, queries = np.empty((group, prompt_room + room), np.float32), np.empty((group, width), np.float32)
    for t in range(first, last):
        prompt, own = prompt_lengths[t], lengths[t]
        for k in range(heads):
            for h in range(group):
                query = carray(_floats(a[5] + 4 * (t * a[6] + k * a[7] + h * a[8])), width)
                for j in range(width):
                    queries[h, j] = query[j] * floats[21]
            new_key = carray(_floats(a[9] + 4 * (t * a[10] + k * a[11])), width)
            new_value = carray(_floats(a[12] + 4 * (t * a[10] + k * a[11])), width)
            shared, kept = 4 * (groups[t] * heads + k) * prompt_room * width, 4 * (t * heads + k) * room * width
            keys, values = carray(_floats(a[15] + kept), (room, width)), carray(_floats(a[16] + kept), (room, width))
            keys[own, :] = new_key
            values[own, :] = new_value
            _scores(scores, queries, carray(_floats(a[13] + shared), (prompt_room, width)), prompt, 0)
            _scores(scores, queries, keys, own + 1, prompt)
            output = outputs[t, k]
            output[:, :] = float32(0)
            for h in range(group):
                _softmax(scores[h], prompt + own + 1)
            _add_values(output, scores, carray(_floats(a[14] + shared), (prompt_room, width)), prompt, 0)
            _add_values(output, scores, values, own + 1, prompt)


class Loop:
    """A compiled loop; calling it runs it over all rows.

    Args:
        entry: computes the rows of one thread.
    """

    def __init__(self, entry: Any) -> None:
        self._entry = entry

    def __call__(self, rows: int, *arguments: int | float | Tensor | None) -> None:
        threads = 1 if _OPENMP is None else torch.get_num_threads()
        numbers, floats = (ctypes.c_int64 * (ARGUMENTS + 3))(), (ctypes.c_float * ARGUMENTS)()
        for index, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                numbers[index] = argument.data_ptr()
            elif isinstance(argument, float):
                floats[index] = argument
            else:
                numbers[index] = argument or 0
        numbers[ARGUMENTS:] = [ctypes.addressof(floats), rows, threads]
        if _OPENMP is None:
            self._entry.ctypes(numbers)
        else:
            _OPENMP.GOMP_parallel(self._entry.address, ctypes.addressof(numbers), threads, 0)


rms_norm, rms_norm_grads, gate, gate_grads, rotate, attend = map(
    Loop, (_rms_norm, _rms_norm_grads, _gate, _gate_grads, _rotate, _attend)
)
