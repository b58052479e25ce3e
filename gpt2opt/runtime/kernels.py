"""The source of our compiled code: a decode step of GPT-2, from embedded tokens to logits, and a loop that reads memory.

Run as a module, this file is compiled by numba; `object_code.py` does so in a process of its own. All data is reached by its address, so
that the compiled code needs neither numba nor Python. What makes it fast:

1. Every weight is read once in a step, in the order of use, from one buffer on huge pages, and prefetched. Several tokens share it.
2. Products of INT8 weights and float32 inputs are written in vector types; LLVM makes slower code of a plain loop.
3. The threads stay in one function for a whole step. They take chunks of work from one counter: a thread that loses its core holds up one
   chunk, and a step gets done even if no other thread comes to help. Who waits spins shortly, then sleeps.
4. exp is a polynomial that can be computed in vectors; a call into the C library can't.
"""

import os
import sys
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gpt2opt.runtime import step_layout as layout
from gpt2opt.runtime.kv_cache import BLOCK
from gpt2opt.runtime.step_layout import AHEAD, ATTENTION, BEGUN, CHUNK_BITS, COLUMNS, DONE, GELU, MOST_TOKENS, OVER, PANEL, RESIDUAL

TOTAL, HEAD, PHASES, TOKENS, SLOTS, POSITIONS, CONTEXT, X, X_STRIDE, CHANNELS, EPSILON, NORMED, SCORES = range(len(layout.PLAN))
KIND, FIRST, CHUNK, ROWS, ROW_SIZE, WEIGHTS, SCALES, BIASES, GAINS, SHIFTS = range(10)
INPUTS, INPUT_STRIDE, OUTPUTS, OUTPUT_STRIDE, KEYS, VALUES, ENDED, NORM_TICKS = range(10, len(layout.PHASE))
PHASE_BYTES, CHUNK_MASK = 8 * len(layout.PHASE), (1 << CHUNK_BITS) - 1
SPINS, NAP_US, LINGER = 20_000, 50, 100_000
"""How often a thread looks at a counter before it sleeps, for how many µs, and how often it looks for work before it leaves."""
WHILE_WAITING = 32 * 1024  # bytes of weights that a thread prefetches before its phase can begin

CPU = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
FEATURES = os.environ.get("NUMBA_CPU_FEATURES") or binding.get_host_cpu_features().flatten()
X86 = binding.get_process_triple().startswith("x86")
LANES, ROWS_AT_ONCE = (16, PANEL) if "+avx512f" in FEATURES.split(",") else (8, PANEL // 2)
"""Float32 numbers in a vector, and rows that are multiplied with 4 tokens at once: as many as the CPU has registers for."""

F = np.float32
i8, i32, i64, f16, f32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.HalfType(), ir.FloatType()
STORED = {"f32": (f32, 4), "f16": (f16, 2), "i8": (i8, 1), "u8": (i8, 1)}
"""Type of stored numbers -> LLVM's, and their bytes."""


def instruction(result, *arguments):
    """Make a function for compiled code of one that writes LLVM's instructions: from a builder and values to a value, or to None."""

    def decorate(write):
        def generate(context, builder, signature, values):
            written = write(builder, *values)
            return context.get_dummy_value() if written is None else written

        def function(typing, *_):
            return result(*arguments), generate

        names = ["typing", *(f"argument_{number}" for number in range(len(arguments)))]
        function.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])  # type: ignore[attr-defined] # which numba reads
        return intrinsic(function)

    return decorate


def external(builder, name, result, *arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def load_vector(builder, address, stored, lanes):
    """Load numbers of one of the types in `STORED` as a vector of float32."""
    kind, alignment = STORED[stored]
    loaded = builder.load(pointer(builder, address, ir.VectorType(kind, lanes)))
    loaded.align = alignment
    if stored == "f16":
        return builder.fpext(loaded, ir.VectorType(f32, lanes))
    if stored == "f32":
        return loaded
    widen = builder.sext if stored == "i8" else builder.zext
    return builder.sitofp(widen(loaded, ir.VectorType(i32, lanes)), ir.VectorType(f32, lanes))


def multiply_add(builder, first, second, total):
    return builder.call(external(builder, f"llvm.fma.v{total.type.count}f32", total.type, *[total.type] * 3), [first, second, total])


def fetch_line(builder, address):
    function = external(builder, "llvm.prefetch.p0", ir.VoidType(), i8.as_pointer(), i32, i32, i32)
    builder.call(function, [pointer(builder, address, i8), i32(0), i32(3), i32(1)])  # to be read, into all caches


def sum_lanes(builder, vectors):
    """Return the sums of the lanes of 4 vectors, as one vector of 4."""
    group = lanes = vectors[0].type.count

    def halved(first, second, low, distance):
        order = [ir.Constant(ir.VectorType(i32, len(low)), [lane + shift for lane in low]) for shift in (0, distance)]
        return builder.fadd(*(builder.shuffle_vector(first, second, one) for one in order))

    while len(vectors) > 1:  # the sums that belong to a vector take half the lanes, so two vectors fit into one
        group //= 2
        low = [lane for lane in range(2 * lanes) if lane % (2 * group) < group]
        vectors = [halved(first, second, low, group) for first, second in zip(vectors[::2], vectors[1::2], strict=True)]
    (total,) = vectors
    while total.type.count > 4:
        total = halved(total, total, range(0, total.type.count, 2), 1)
    return total


def products_of_panel(stored, tokens, columns, prefetch):
    """Return a function for compiled code: products of `PANEL` rows with the inputs of some tokens, 4 results per token.

    The order of a sum is the same for any number of tokens. Its arguments: address of the first row; bytes from row to row; bytes from each
    `columns` numbers of a row to the next; numbers in a row, a multiple of `columns`; address of the inputs, and bytes from token to token;
    the same of the results.
    """
    lanes, size = min(LANES, columns), STORED[stored][1]
    zero, at_once = ir.Constant(ir.VectorType(f32, lanes), [0.0] * lanes), ROWS_AT_ONCE if tokens == 4 else PANEL

    @instruction(types.void, *[types.int64] * 8)
    def products(builder, rows, row_bytes, column_bytes, count, inputs, input_bytes, results, result_bytes):
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(PANEL)] for _ in range(tokens)]
        begin = cgutils.alloca_once(builder, i64)
        for first in range(0, PANEL, at_once):
            builder.store(rows, begin)
            with cgutils.for_range_slice(builder, i64(0), count, i64(columns)) as (column, _):
                at = builder.load(begin)
                for line in range(0, PANEL * columns * size if prefetch and not first else 0, 64):
                    fetch_line(builder, builder.add(at, i64(AHEAD + line)))
                for part in range(0, columns, lanes):
                    place = builder.add(inputs, builder.mul(builder.add(column, i64(part)), i64(4)))
                    places = [builder.add(place, builder.mul(input_bytes, i64(token))) for token in range(tokens)]
                    values = [load_vector(builder, one, "f32", lanes) for one in places]
                    for row in range(first, first + at_once):
                        place = builder.add(builder.add(at, builder.mul(row_bytes, i64(row))), i64(part * size))
                        weights = load_vector(builder, place, stored, lanes)
                        for value, total in zip(values, sums, strict=True):
                            builder.store(multiply_add(builder, weights, value, builder.load(total[row])), total[row])
                builder.store(builder.add(at, column_bytes), begin)
        for token, total in enumerate(sums):
            four = sum_lanes(builder, [builder.load(one) for one in total])
            builder.store(four, pointer(builder, builder.add(results, builder.mul(result_bytes, i64(token))), four.type)).align = 4

    return products


def weighted_sums(stored, lanes, rows_at_once):
    """Return a function for compiled code: adds weighted rows of `lanes` numbers to as many results.

    Its arguments: address of the first row; bytes from row to row; address of the weights, one for each row; the first row that counts, and
    the one after the last, from which `rows_at_once` divides the distance; address of the results.
    """

    @instruction(types.void, *[types.int64] * 6)
    def sums(builder, rows, row_bytes, weights, begin, end, results):
        vector = ir.VectorType(f32, lanes)
        zero = ir.Constant(vector, [0.0] * lanes)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(rows_at_once)]
        with cgutils.for_range_slice(builder, begin, end, i64(rows_at_once)) as (first, _):
            for number, total in enumerate(totals):
                row = builder.add(first, i64(number))
                weight = builder.load(pointer(builder, builder.add(weights, builder.mul(row, i64(4))), f32))
                lane = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, i32(0))
                every = builder.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))
                values = load_vector(builder, builder.add(rows, builder.mul(row, row_bytes)), stored, lanes)
                builder.store(multiply_add(builder, every, values, builder.load(total)), total)
        total = load_vector(builder, results, "f32", lanes)
        for one in totals:
            total = builder.fadd(total, builder.load(one))
        builder.store(total, pointer(builder, results, vector)).align = 4

    return sums


def numbers_at(kind, stored):
    """Return a function for compiled code: from an address to the numbers that lie from there on."""
    return instruction(types.CPointer(kind), types.int64)(lambda builder, address: pointer(builder, address, stored))


floats, integers, octets = numbers_at(types.float32, f32), numbers_at(types.int64, i64), numbers_at(types.uint8, i8)


@instruction(types.void, types.int64, types.float32)
def store_half(builder, address, value):
    builder.store(builder.fptrunc(value, f16), pointer(builder, address, f16))


@instruction(types.float32, types.int32)
def power_of_two(builder, exponent):
    """2 to the power of an integer from -126 to 127, by its bits."""
    return builder.bitcast(builder.shl(builder.add(exponent, i32(127)), i32(23)), f32)


@instruction(types.void, types.int64)
def prefetch(builder, address):
    fetch_line(builder, address)


@instruction(types.int64, types.int64, types.int64)
def fetch_add(builder, address, value):
    """Add to a counter that threads share; return what it was before."""
    return builder.atomic_rmw("add", pointer(builder, address, i64), value, "seq_cst")


@instruction(types.int64, types.int64)
def load(builder, address):
    """Read a counter that threads share."""
    return builder.load_atomic(pointer(builder, address, i64), "acquire", 8)


@instruction(types.void, types.int64, types.int64)
def store(builder, address, value):
    """Write a counter that threads share."""
    builder.store_atomic(value, pointer(builder, address, i64), "seq_cst", 8)


sleep_us: Any = types.ExternalFunction("usleep", types.int32(types.int32))
clock: Any = types.ExternalFunction("llvm.readcyclecounter" if X86 else "llvm.readsteadycounter", types.int64())
"""The CPU's counter of time; on Arm not that of its cycles, which a program may not read."""

# Sums may be reordered into vectors. NaN and infinity stay what they are.
compiled = njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")


@njit(fastmath={"contract"}, error_model="numpy")
def exp(x):
    """e to the power of x, to 1e-6 of the value, for x from -87 to 88; others are cut. x = n · ln 2 + f: a polynomial of f, and 2ⁿ."""
    x = min(max(x, F(-87)), F(88))
    n = np.floor(x * F(1.44269504) + F(0.5))
    f = (x - n * F(0.693359375)) + n * F(2.12194440e-4)  # ln 2 in two parts, so that nothing is rounded away
    e = (((((F(1 / 720) * f + F(1 / 120)) * f + F(1 / 24)) * f + F(1 / 6)) * f + F(0.5)) * f + F(1)) * f + F(1)
    return e * power_of_two(np.int32(n))


@compiled
def layer_norm(x, gains, shifts, epsilon, count, out):
    mean, variance = F(0), F(0)
    for i in range(count):
        mean += x[i]
    mean /= F(count)
    for i in range(count):
        variance += (x[i] - mean) * (x[i] - mean)
    factor = F(1) / np.sqrt(variance / F(count) + epsilon)
    for i in range(count):
        out[i] = (x[i] - mean) * factor * gains[i] + shifts[i]


@compiled
def finish(y, scales, biases, count):
    for i in range(count):
        y[i] = y[i] * scales[i] + biases[i]


@compiled
def finish_gelu(y, scales, biases, count):
    """GELU by tanh (Hendrycks & Gimpel 2016), as GPT-2 has it: v · (1 + tanh u) / 2 = v / (1 + exp(-2 u))."""
    for i in range(count):
        v = y[i] * scales[i] + biases[i]
        y[i] = v / (F(1) + exp(F(-2 * 0.7978845608028654) * (v + F(0.044715) * v * v * v)))


@compiled
def finish_residual(y, scales, biases, count, x):
    for i in range(count):
        x[i] += y[i] * scales[i] + biases[i]


@njit(fastmath=True, error_model="numpy")
def largest_of(values, count):
    """The largest number; any of them if there is NaN, which spreads from where it is."""
    largest = values[0]
    for i in range(count):
        largest = max(largest, values[i])
    return largest


@compiled
def softmax(values, count):
    largest, total = largest_of(values, count), F(0)
    for i in range(count):
        values[i] = exp(max(values[i] - largest, F(-60)))
        total += values[i]
    for i in range(count):
        values[i] /= total


@compiled
def prefetch_lines(begin, count):
    for at in range(begin, begin + count, 64):
        prefetch(at)


@njit(error_model="numpy")
def wait(counter, least):
    """Wait until a counter has a value. The thread that is waited for may need this core, so that spinning without end would hold it up."""
    spins = 0
    while load(counter) < least:
        spins += 1
        if spins > SPINS:
            sleep_us(NAP_US)


def attention_over(stored, width):
    """Return compiled attention over a KV cache of one of the types in `STORED`, for heads of a width that is a multiple of 8."""
    lanes = LANES if width % LANES == 0 else 8
    products = products_of_panel(stored, 1, lanes, prefetch=False)
    add_panels, add_rest = weighted_sums(stored, lanes, PANEL), weighted_sums(stored, lanes, 1)
    header, size, quantized, half = layout.CACHE_HEADER[stored], STORED[stored][1], stored == "u8", stored == "f16"
    row_bytes, scale = header + width * size, F(width**-0.5)
    of_head, block_bytes = 4 * width, BLOCK * row_bytes

    @compiled
    def store_in_cache(source, target):
        """Write a key or a value. In a u8 cache it has a range of its own, as the CPU plugin rounds it."""
        values = floats(source)
        if quantized:
            low, high = values[0], values[0]
            for i in range(1, width):
                low, high = min(low, values[i]), max(high, values[i])
            step = max((high - low) / F(255), F(1.1754944e-38))
            floats(target)[0], floats(target)[1] = step, -low / step
            for i in range(width):
                octets(target + header)[i] = np.uint8(np.int32((values[i] - low) / step + F(0.5)))
        else:
            for i in range(width):
                if half:
                    store_half(target + 2 * i, values[i])
                else:
                    floats(target)[i] = values[i]

    @compiled
    def score(query, block, after, tokens, scores):
        """Scores of the first tokens of a block of the cache, for one head of one token. after: what is to be prefetched."""
        result, query_sum = floats(scores), F(0)
        for d in range(width):
            query_sum += floats(query)[d]
        prefetch_lines(after, tokens * row_bytes)
        for t in range(0, tokens, PANEL):
            products(block + t * row_bytes + header, row_bytes, lanes * size, width, query, 0, scores + 4 * t, 0)
        for t in range(tokens):
            if quantized:
                key = floats(block + t * row_bytes)
                result[t] = (result[t] - key[1] * query_sum) * key[0] * scale
            else:
                result[t] *= scale

    @compiled
    def add_values(weights, block, after, tokens, out):
        """Add the values of the first tokens of a block of the cache, weighted, to the result of a head."""
        weight, panels, shift = floats(weights), tokens // PANEL * PANEL, F(0)
        if quantized:
            for t in range(tokens):
                value = floats(block + t * row_bytes)
                weight[t] *= value[0]
                shift += weight[t] * value[1]
        prefetch_lines(after, tokens * row_bytes)
        for d in range(0, width, lanes):
            add_panels(block + header + d * size, row_bytes, weights, 0, panels, out + 4 * d)
            add_rest(block + header + d * size, row_bytes, weights, panels, tokens, out + 4 * d)
        if quantized:
            for d in range(width):
                floats(out)[d] -= shift

    @compiled
    def attention(plan, now, begin, end, scores):
        """Attention of some heads, for all tokens; the keys and values of these go into the cache before any is read.

        Block after block, so that what is read of a block, that of some heads, lies together.
        """
        heads, slots, positions = now[ROWS], integers(plan[SLOTS]), integers(plan[POSITIONS])
        per_slot, per_head = (plan[CONTEXT] + BLOCK - 1) // BLOCK * heads, 4 * (plan[CONTEXT] + BLOCK)
        for token in range(plan[TOKENS]):
            source, position = now[INPUTS] + 4 * token * now[INPUT_STRIDE], positions[token]
            for head in range(begin, end):
                at = (slots[token] * per_slot + position // BLOCK * heads + head) * block_bytes + position % BLOCK * row_bytes
                store_in_cache(source + (heads + head) * of_head, now[KEYS] + at)
                store_in_cache(source + (2 * heads + head) * of_head, now[VALUES] + at)
        for token in range(plan[TOKENS]):
            query, out = now[INPUTS] + 4 * token * now[INPUT_STRIDE], now[OUTPUTS] + 4 * token * now[OUTPUT_STRIDE]
            first, count = slots[token] * per_slot, positions[token] + 1
            for t in range(0, count, BLOCK):
                here, row = min(BLOCK, count - t), first + t // BLOCK * heads
                for head in range(begin, end):
                    block, row_scores = now[KEYS] + (row + head) * block_bytes, scores + (head - begin) * per_head + 4 * t
                    score(query + head * of_head, block, block + heads * block_bytes, here, row_scores)
            for head in range(begin, end):
                prefetch_lines(now[VALUES] + (first + head) * block_bytes, block_bytes)
                softmax(floats(scores + (head - begin) * per_head), count)
                for d in range(width):
                    floats(out + head * of_head)[d] = F(0)
            for t in range(0, count, BLOCK):
                here, row = min(BLOCK, count - t), first + t // BLOCK * heads
                for head in range(begin, end):
                    block, row_scores = now[VALUES] + (row + head) * block_bytes, scores + (head - begin) * per_head + 4 * t
                    add_values(row_scores, block, block + heads * block_bytes, here, out + head * of_head)

    return attention


def step_over(stored, cached, width):
    """Return the decode step for weights and a KV cache of two types in `STORED`, to be compiled."""
    one, two, four = (products_of_panel(stored, tokens, COLUMNS, prefetch=True) for tokens in (1, 2, 4))
    attention, size = attention_over(cached, width), STORED[stored][1]

    @compiled
    def project(plan, now, begin, end, inputs):
        """Some rows of a matmul, for all tokens, and what follows it."""
        stride, out_bytes, in_bytes, columns = now[OUTPUT_STRIDE], 4 * now[OUTPUT_STRIDE], 4 * now[INPUT_STRIDE], now[ROW_SIZE]
        row_bytes, column_bytes, token = COLUMNS * size, PANEL * COLUMNS * size, 0
        while token < plan[TOKENS]:
            left, x = plan[TOKENS] - token, inputs + token * in_bytes
            for row in range(begin, end, PANEL):
                rows, y = now[WEIGHTS] + row * columns * size, now[OUTPUTS] + token * out_bytes + 4 * row
                if left >= 4:
                    four(rows, row_bytes, column_bytes, columns, x, in_bytes, y, out_bytes)
                elif left >= 2:
                    two(rows, row_bytes, column_bytes, columns, x, in_bytes, y, out_bytes)
                else:
                    one(rows, row_bytes, column_bytes, columns, x, in_bytes, y, out_bytes)
            token += 4 if left >= 4 else min(left, 2)
        scales, biases = floats(now[SCALES] + 4 * begin), floats(now[BIASES] + 4 * begin)
        for token in range(plan[TOKENS]):
            y = floats(now[OUTPUTS] + 4 * (token * stride + begin))
            if now[KIND] == GELU:
                finish_gelu(y, scales, biases, end - begin)
            elif now[KIND] == RESIDUAL:
                finish_residual(y, scales, biases, end - begin, floats(plan[X] + 4 * (token * plan[X_STRIDE] + begin)))
            else:
                finish(y, scales, biases, end - begin)

    @compiled
    def normalize(address, plan, now, out):
        for token in range(plan[TOKENS]):
            at = 4 * token * plan[X_STRIDE]
            epsilon = floats(address + 8 * EPSILON)[0]
            layer_norm(floats(plan[X] + at), floats(now[GAINS]), floats(now[SHIFTS]), epsilon, plan[CHANNELS], floats(out + at))

    def step(address, state, worker):
        """Work on a step. address: its plan. worker: 1, 2, ... help while there is work; 0 does all of it, -1 the head alone."""
        plan, thread, ticket, done = integers(address), max(worker, 0), state, state + 8 * DONE
        phase, number, normed_for, idle = np.int64(0), np.int64(-1), np.int64(-1), 0
        if worker <= 0:
            begin = plan[HEAD] if worker < 0 else 0
            store(done, begin)
            integers(state)[BEGUN] = clock()
            store(ticket, (((load(ticket) >> CHUNK_BITS) + 1) << CHUNK_BITS) + begin)
        while True:
            if load(ticket) & CHUNK_MASK >= plan[TOTAL]:
                idle += 1
                if worker <= 0 or idle > LINGER:
                    break
                continue
            taken = fetch_add(ticket, 1)
            chunk = taken & CHUNK_MASK
            if chunk >= plan[TOTAL]:
                continue
            if taken >> CHUNK_BITS != number:
                phase, number, normed_for = np.int64(0), taken >> CHUNK_BITS, np.int64(-1)
            while chunk >= integers(plan[PHASES] + PHASE_BYTES * (phase + 1))[FIRST]:
                phase += 1
            now, idle = integers(plan[PHASES] + PHASE_BYTES * phase), 0
            begin = (chunk - now[FIRST]) * now[CHUNK]
            end = min(begin + now[CHUNK], now[ROWS])
            if load(done) < now[FIRST]:
                row_bytes = now[ROW_SIZE] * size
                prefetch_lines(now[WEIGHTS] + begin * row_bytes, min((end - begin) * row_bytes, WHILE_WAITING))
                wait(done, now[FIRST])
            inputs = now[INPUTS]
            if now[GAINS]:
                inputs = plan[NORMED] + 4 * thread * MOST_TOKENS * plan[X_STRIDE]
                if normed_for != phase:
                    before, normed_for = clock(), phase
                    normalize(address, plan, now, inputs)
                    if thread == 0:
                        now[NORM_TICKS] = clock() - before
            if now[KIND] == ATTENTION:
                attention(plan, now, begin, end, plan[SCORES] + 4 * thread * now[CHUNK] * (plan[CONTEXT] + BLOCK))
            else:
                project(plan, now, begin, end, inputs)
            if fetch_add(done, 1) + 1 == integers(plan[PHASES] + PHASE_BYTES * (phase + 1))[FIRST]:
                now[ENDED] = clock()
        if worker <= 0:
            wait(done, plan[TOTAL])
            integers(state)[OVER] = clock()  # another thread may not yet have written when the last phase ended

    return step


@instruction(types.void, types.int64, types.int64, types.int64)
def read(builder, address, count, result):
    """Read bytes, a multiple of 256, as fast as one core can; write their sum, 512 bits wide, so that reading can't be left out."""
    vector = ir.VectorType(i64, 8)
    sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * 8)) for _ in range(4)]
    with cgutils.for_range_slice(builder, i64(0), count, i64(256)) as (at, _):
        for number, total in enumerate(sums):
            line = builder.add(builder.add(address, at), i64(64 * number))
            fetch_line(builder, builder.add(line, i64(AHEAD)))
            loaded = builder.load(pointer(builder, line, vector))
            loaded.align = 8
            builder.store(builder.add(loaded, builder.load(total)), total)
    total = builder.add(*(builder.add(*(builder.load(one) for one in pair)) for pair in (sums[:2], sums[2:])))
    builder.store(total, pointer(builder, result, vector)).align = 8


def function_named(name):
    """Return what is to be compiled: `read`, or `step TYPE_OF_WEIGHTS TYPE_OF_CACHE WIDTH_OF_HEADS`."""
    if name == "read":
        return lambda address, count, result: read(address, count, result)
    _, stored, cached, width = name.split()
    return step_over(stored, cached, int(width))


def main() -> None:
    """Compile the function that is named; write to stdout the name that it has in the object code, and the object code."""
    if X86 and not {"+fma", "+f16c"} <= set(FEATURES.split(",")):
        sys.exit("this CPU has no FMA or F16C")  # LLVM would call functions of its own library in their place
    compiled_function = cfunc(types.void(*[types.int64] * 3), error_model="numpy")(function_named(sys.argv[1]))
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(CPU, FEATURES, opt=3, codemodel="jitdefault", jit=True)
    module = binding.parse_assembly(compiled_function.inspect_llvm())
    module.get_function(compiled_function.native_name).linkage = "internal"  # numba's wrapper, which needs numba and Python
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(machine, binding.create_pipeline_tuning_options()))
    sys.stdout.buffer.write(compiled_function.native_name.removeprefix("cfunc.").encode() + b"\n" + machine.emit_object(module))


if __name__ == "__main__":
    main()
