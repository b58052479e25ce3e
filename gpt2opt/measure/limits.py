"""What the machine can do at best: bytes read, INT8 and FP32 operations per second.

No one way of reading or multiplying is the fastest on every CPU, so the limit is the best that any of several ways reached. An engine can
still be faster: weights that fit into the CPU's caches need not be read from memory at all.
"""

import timeit
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from gpt2opt.measure.child import Child, thread_settings

BUFFER_BYTES = 512 * 2**20  # far more than any L3 cache holds
ROWS, INNER, OUTER = 1024, 2048, 2048
REPEATS = 5


@dataclass(frozen=True)
class Limits:
    """What the machine gave at one moment: the best of `REPEATS` of each way.

    Read: by our compiled loop, which prefetches; sum, maximum and dot product; on huge pages and with all threads. INT8: torch's
    quantized linear layer and 1 × 1 convolution, u8 × i8, by each library that torch has for them. FP32: torch matmul.
    """

    read_bytes_per_s: float
    int8_ops_per_s: float
    fp32_ops_per_s: float


class Probe:
    """Measures the limits; holds its buffers between calls."""

    def __init__(self, threads: int):
        import torch

        torch.set_num_threads(threads)
        inputs, weight = torch.randn(ROWS, INNER), torch.randn(OUTER, INNER)
        self.reads, self.int8_matmuls, self.fp32_matmuls = _reads(threads), _int8_matmuls(inputs, weight), [lambda: inputs @ weight.T]

    def measure(self) -> Limits:
        import torch

        operations = 2 * ROWS * INNER * OUTER
        with torch.inference_mode():
            return Limits(BUFFER_BYTES / _best(self.reads), operations / _best(self.int8_matmuls), operations / _best(self.fp32_matmuls))


def measure_limits(threads: int) -> Limits:
    """Measure the limits with a number of threads, in a fresh process: a library reads the number when it is loaded."""
    with Child(Probe, threads, environment=thread_settings(threads)) as probe:
        return probe.call("measure")


def _reads(threads: int) -> list[Callable[[], object]]:
    """Return ways of reading a buffer once. A matrix × vector product, which decoding is, reads up to a fifth slower in torch."""
    import numpy as np
    import torch

    from gpt2opt.runtime.decode_step import on_huge_pages
    from gpt2opt.runtime.object_code import CantCompileError, compiled_function
    from gpt2opt.runtime.step_layout import AHEAD

    memory = on_huge_pages(BUFFER_BYTES + AHEAD)[:BUFFER_BYTES]
    memory[:] = 1
    numbers = torch.from_numpy(memory).view(torch.float32)
    integers, parts, pool = numbers.view(torch.int32), np.array_split(numbers.numpy(), threads), ThreadPoolExecutor(threads)
    ways: list[Callable[[], object]] = [numbers.sum, integers.amax, lambda: list(pool.map(lambda part: np.dot(part, part), parts))]
    try:
        read, sums, size = compiled_function("read"), np.zeros((threads, 8), np.int64), BUFFER_BYTES // threads // 256 * 256
    except CantCompileError:
        return ways
    return [*ways, lambda: list(pool.map(lambda n: read(memory.ctypes.data + n * size, size, sums[n].ctypes.data), range(threads)))]


def _int8_matmuls(inputs, weight) -> list[Callable[[], object]]:
    import torch

    quantized = torch.ops.quantized
    inputs = torch.quantize_per_tensor(inputs, 0.05, 128, torch.quint8)
    # 7 bits: products of full range saturate where two of them are added in 16 bits; the speed is the same.
    weight = torch.quantize_per_tensor(weight.clamp(-1, 1), 1 / 64, 0, torch.qint8)
    pixels = inputs.T.reshape(1, INNER, ROWS, 1).contiguous(memory_format=torch.channels_last)
    ways: list[Callable[[], object]] = []
    supported = torch.backends.quantized.supported_engines
    for engine in [name for name in ("onednn", "fbgemm") if name in supported] or supported:
        torch.backends.quantized.engine = engine
        linear = quantized.linear_prepack(weight, None)
        convolution = quantized.conv2d_prepack(weight.reshape(OUTER, INNER, 1, 1), None, [1, 1], [0, 0], [1, 1], 1)
        ways += [partial(quantized.linear, inputs, linear, 1.0, 128), partial(quantized.conv2d, pixels, convolution, 1.0, 128)]
    return ways


def _best(ways: Sequence[Callable[[], object]]) -> float:
    """Return the least seconds that any of these took, after a warm-up."""
    return min(min(timeit.repeat(work, repeat=REPEATS + 1, number=1)[1:]) for work in ways)
