"""Attention within the texts of a packed sequence, as loops compiled by numba. Import through ``loops``.

A task is one text and one head of keys, with the queries of its group. Its keys and values are copied side by side
with those of its prompt, so that one softmax covers both; products of small blocks keep their sums in registers.

numba compiles again if this file changes, but not if ``numba_loops`` does: touch this file after a change of what it
imports from there.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir
import numpy as np
from numba import carray, float32, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from burnish.policies.kernels.numba_loops import (
    MATH,
    Loop,
    _arguments,
    _exp,
    _floats,
    _integers,
    _loop,
    _softmax,
)  # fmt: skip

ROWS, COLUMNS = 6, 16
"""Shape of the block of a product that is kept in registers."""
BLOCK = 48
"""Rows of queries, tokens times heads of a group, that are computed together; a multiple of ROWS."""
FIELDS = 6
"""Integers of a task: start and length of its prompt and of its text, its head, and 1 for a completion."""


@intrinsic
def _multiply_block(
    context: Any, target: Any, corner: Any, stride: Any, left: Any, origin: Any, row: Any, step: Any,
    right: Any, column: Any, right_stride: Any, steps: Any, add: Any,
) -> Any:  # fmt: skip
    """Compute, or add, a block of ROWS by COLUMNS of a product; positions and strides count numbers."""
    arguments = (target, corner, stride, left, origin, row, step, right, column, right_stride, steps, add)
    return types.void(*arguments), _generate_block


def _generate_block(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    _, corner, stride, _, origin, row, step, _, column, right_stride, steps, add = arguments
    pointers = [
        context.make_array(signature.args[index])(context, builder, arguments[index]).data for index in (0, 3, 7)
    ]
    vector = llvmlite.ir.VectorType(llvmlite.ir.FloatType(), COLUMNS)
    index_type, word = llvmlite.ir.IntType(64), llvmlite.ir.IntType(32)
    zero = llvmlite.ir.Constant(vector, [0.0] * COLUMNS)

    def vector_at(pointer: Any, index: Any) -> Any:
        return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())

    def times(number: int, value: Any) -> Any:
        return builder.mul(llvmlite.ir.Constant(index_type, number), value)

    outputs = [vector_at(pointers[0], builder.add(corner, times(index, stride))) for index in range(ROWS)]
    sums = [cgutils.alloca_once(builder, vector) for _ in range(ROWS)]
    for output, total in zip(outputs, sums, strict=True):
        builder.store(zero, total)
        with builder.if_then(builder.trunc(add, llvmlite.ir.IntType(1))):
            builder.store(builder.load(output, align=4), total)
    with cgutils.for_range(builder, steps) as loop:
        values = builder.load(
            vector_at(pointers[2], builder.add(column, builder.mul(loop.index, right_stride))), align=4
        )
        first = builder.add(origin, builder.mul(loop.index, step))
        for index, total in enumerate(sums):
            factor = builder.load(builder.gep(pointers[1], [builder.add(first, times(index, row))]))
            lane = builder.insert_element(
                llvmlite.ir.Constant(vector, llvmlite.ir.Undefined), factor, llvmlite.ir.Constant(word, 0)
            )
            mask = llvmlite.ir.Constant(llvmlite.ir.VectorType(word, COLUMNS), [0] * COLUMNS)
            spread = builder.shuffle_vector(lane, lane, mask)
            product = builder.fmul(spread, values, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
    for output, total in zip(outputs, sums, strict=True):
        builder.store(builder.load(total), output, align=4)
    return context.get_dummy_value()


@njit(error_model="numpy")
def _multiply(
    target: Any, left: Any, row: Any, step: Any, right: Any, rows: Any, columns: Any, steps: Any, add: Any
) -> None:
    """Set target [rows, columns] to left @ right, or add it; rounded up to whole blocks, for which there is room."""
    for column in range(0, columns, COLUMNS):
        for first in range(0, rows, ROWS):
            _multiply_block(
                target, first * target.shape[1] + column, target.shape[1], left, first * row, row, step,
                right, column, right.shape[1], steps, add,
            )  # fmt: skip


@njit(error_model="numpy")
def _copy(target: Any, first: Any, address: Any, stride: Any, count: Any, width: Any) -> None:
    """Copy rows of a tensor into those of the target from the first on."""
    for u in range(count):
        source, row = carray(_floats(address + 4 * u * stride), width), target[first + u]
        for j in range(width):
            row[j] = source[j]


@njit(error_model="numpy")
def _copy_transposed(target: Any, first: Any, address: Any, stride: Any, count: Any, width: Any) -> None:
    for u in range(count):
        source = carray(_floats(address + 4 * u * stride), width)
        for j in range(width):
            target[j, first + u] = source[j]


@njit(error_model="numpy")
def _copy_queries(target: Any, a: Any, token: Any, count: Any, head: Any, scale: Any) -> None:
    for t in range(count):
        for h in range(a[1]):
            address = a[5] + 4 * ((token + t) * a[6] + head * a[7] + h * a[8])
            source, row = carray(_floats(address), a[2]), target[t * a[1] + h]
            for j in range(a[2]):
                row[j] = source[j] * scale


@njit(error_model="numpy")
def _starts_part(tasks: Any, task: Any) -> Any:
    """Return whether a task has another prompt or head than the one before it."""
    return task == 0 or tasks[task, 0] != tasks[task - 1, 0] or tasks[task, 4] != tasks[task - 1, 4]


@njit(fastmath=MATH, error_model="numpy")
def _score_grads(scores: Any, grads: Any, count: Any, normaliser: Any, shift: Any) -> None:
    """Turn a row of scores into weights, and the gradients of the weights into those of the scores."""
    for u in range(count):
        scores[u] = _exp(scores[u] - normaliser)
    for u in range(count):
        grads[u] = scores[u] * (grads[u] - shift)
    for u in range(count, len(scores)):
        scores[u] = float32(0)
        grads[u] = float32(0)


@njit(error_model="numpy")
def _whole(count: Any, unit: Any) -> Any:
    return (count + unit - 1) // unit * unit


@_loop
def _attend_packed(data: Any) -> None:
    a, floats, first, last = _arguments(data)
    group, width, value_width = a[1], a[2], a[3]
    tasks, chunks = carray(_integers(a[17]), (a[19], FIELDS)), carray(_integers(a[18]), last + 1)
    room, block = _whole(a[4] + BLOCK, BLOCK), max(BLOCK, _whole(group, ROWS))
    keys, values = np.zeros((width, room), np.float32), np.zeros((room, _whole(value_width, COLUMNS)), np.float32)
    queries, scores = np.zeros((block, width), np.float32), np.zeros((block, room), np.float32)
    outputs = np.zeros((block, values.shape[1]), np.float32)
    for chunk in range(first, last):
        for task in range(chunks[chunk], chunks[chunk + 1]):
            start, prompt, own, length, head, completes = tasks[task]
            key, value = a[9] + 4 * head * a[11], a[12] + 4 * head * a[14]
            if task == chunks[chunk] or _starts_part(tasks, task):
                _copy_transposed(keys, 0, key + 4 * start * a[10], a[10], prompt, width)
                _copy(values, 0, value + 4 * start * a[13], a[13], prompt, value_width)
            offset = prompt * completes
            _copy_transposed(keys, offset, key + 4 * own * a[10], a[10], length, width)
            _copy(values, offset, value + 4 * own * a[13], a[13], length, value_width)
            for token in range(0, length, block // group):
                count = min(block // group, length - token)
                rows, visible = count * group, offset + token + count
                _copy_queries(queries, a, own + token, count, head, floats[20])
                columns = _whole(visible, COLUMNS)
                _multiply(scores, queries, width, 1, keys, rows, columns, width, 0)
                for t in range(count):
                    address = a[16] + 4 * ((own + token + t) * a[0] + head) * group
                    normalisers = carray(_floats(address), group)
                    for h in range(group):
                        row, seen = scores[t * group + h], offset + token + t + 1
                        normalisers[h] = _softmax(row, seen)
                        row[seen:columns] = float32(0)
                _multiply(outputs, scores, room, 1, values, rows, values.shape[1], visible, 0)
                for t in range(count):
                    address = a[15] + 4 * ((own + token + t) * a[0] + head) * group * value_width
                    output = carray(_floats(address), (group, value_width))
                    for h in range(group):
                        for j in range(value_width):
                            output[h, j] = outputs[t * group + h, j]


@njit(fastmath=MATH, error_model="numpy")
def _block_grads(
    a: Any, scale: Any, token: Any, count: Any, head: Any, past: Any, keys: Any, keys_across: Any, values_across: Any,
    key_grads: Any, value_grads: Any, scratch: Any,
) -> None:  # fmt: skip
    """Add what the queries of some tokens contribute to the gradients, and store their own; ``past`` keys precede."""
    queries, grads, scores, score_grads, query_grads = scratch
    group, width, value_width, rows, visible = a[1], a[2], a[3], count * a[1], past + count
    columns, room = _whole(visible, COLUMNS), scores.shape[1]
    first = (token * a[0] + head) * group
    _copy_queries(queries, a, token, count, head, scale)
    for t in range(count):
        _copy(grads, t * group, a[21] + 4 * (first + t * a[0] * group) * value_width, value_width, group, value_width)
    _multiply(scores, queries, queries.shape[1], 1, keys_across, rows, columns, width, 0)
    _multiply(score_grads, grads, grads.shape[1], 1, values_across, rows, columns, value_width, 0)
    for t in range(count):
        index = first + t * a[0] * group
        outputs, normalisers = (
            carray(_floats(a[15] + 4 * index * value_width), (group, value_width)),
            carray(_floats(a[16] + 4 * index), group),
        )
        for h in range(group):
            row, shift = t * group + h, float32(0)
            output, grad = outputs[h], grads[row]
            for j in range(value_width):
                shift += output[j] * grad[j]
            past_rows = slice(0, min(columns + COLUMNS, room))
            _score_grads(scores[row, past_rows], score_grads[row, past_rows], past + t + 1, normalisers[h], shift)
    _multiply(query_grads, score_grads, room, 1, keys, rows, keys.shape[1], visible, 0)
    _multiply(key_grads, score_grads, 1, room, queries, visible, keys.shape[1], rows, 1)
    _multiply(value_grads, scores, 1, room, grads, visible, grads.shape[1], rows, 1)
    for t in range(count):
        target = carray(_floats(a[22] + 4 * (first + t * a[0] * group) * width), (group, width))
        for h in range(group):
            for j in range(width):
                target[h, j] = query_grads[t * group + h, j] * scale


@njit(error_model="numpy")
def _store(address: Any, stride: Any, source: Any, first: Any, count: Any, width: Any) -> None:
    for u in range(count):
        target, row = carray(_floats(address + 4 * u * stride), width), source[first + u]
        for j in range(width):
            target[j] = row[j]


@_loop
def _attend_packed_grads(data: Any) -> None:
    """A prompt's gradients of a chunk that begins within its tasks are stored apart: they are still to be added."""
    a, floats, first, last = _arguments(data)
    heads, group, width, value_width = a[0], a[1], a[2], a[3]
    tasks, chunks = carray(_integers(a[17]), (a[19], FIELDS)), carray(_integers(a[18]), last + 1)
    room, block = _whole(a[4] + BLOCK, BLOCK), max(BLOCK, _whole(group, ROWS))
    wide, value_wide = _whole(width, COLUMNS), _whole(value_width, COLUMNS)
    keys, keys_across = np.zeros((room, wide), np.float32), np.zeros((width, room), np.float32)
    values_across = np.zeros((value_width, room), np.float32)
    key_grads, value_grads = np.zeros((room, wide), np.float32), np.zeros((room, value_wide), np.float32)
    scratch = (
        np.zeros((block, wide), np.float32), np.zeros((block, value_wide), np.float32),
        np.zeros((block, room), np.float32), np.zeros((block, room), np.float32), np.zeros((block, wide), np.float32),
    )  # fmt: skip
    for chunk in range(first, last):
        begin, end = chunks[chunk], chunks[chunk + 1]
        apart = begin < end and not _starts_part(tasks, begin)
        for task in range(begin, end):
            start, prompt, own, length, head, completes = tasks[task]
            key, value = a[9] + 4 * head * a[11], a[12] + 4 * head * a[14]
            if task == begin or _starts_part(tasks, task):
                apart = apart and task == begin
                key_grads[:prompt] = float32(0)
                value_grads[:prompt] = float32(0)
                _copy(keys, 0, key + 4 * start * a[10], a[10], prompt, width)
                _copy_transposed(keys_across, 0, key + 4 * start * a[10], a[10], prompt, width)
                _copy_transposed(values_across, 0, value + 4 * start * a[13], a[13], prompt, value_width)
            offset = prompt * completes
            key_grads[offset : offset + length] = float32(0)
            value_grads[offset : offset + length] = float32(0)
            _copy(keys, offset, key + 4 * own * a[10], a[10], length, width)
            _copy_transposed(keys_across, offset, key + 4 * own * a[10], a[10], length, width)
            _copy_transposed(values_across, offset, value + 4 * own * a[13], a[13], length, value_width)
            for token in range(0, length, block // group):
                count = min(block // group, length - token)
                _block_grads(
                    a, floats[20], own + token, count, head, offset + token, keys, keys_across, values_across,
                    key_grads, value_grads, scratch,
                )  # fmt: skip
            if completes != 0:
                _store(a[23] + 4 * (own * heads + head) * width, heads * width, key_grads, offset, length, width)
                target = a[24] + 4 * (own * heads + head) * value_width
                _store(target, heads * value_width, value_grads, offset, length, value_width)
            if task + 1 == end or _starts_part(tasks, task + 1):
                if apart:
                    _store(a[25] + 4 * chunk * a[4] * width, width, key_grads, 0, prompt, width)
                    _store(a[26] + 4 * chunk * a[4] * value_width, value_width, value_grads, 0, prompt, value_width)
                else:
                    _store(a[23] + 4 * (start * heads + head) * width, heads * width, key_grads, 0, prompt, width)
                    target = a[24] + 4 * (start * heads + head) * value_width
                    _store(target, heads * value_width, value_grads, 0, prompt, value_width)


attend_packed, attend_packed_grads = Loop(_attend_packed), Loop(_attend_packed_grads)
