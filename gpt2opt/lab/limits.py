"""What the machine can do at best: bytes read, INT8 and FP32 operations a second. No engine decodes or prefills faster than these."""

import time
from collections.abc import Callable
from dataclasses import dataclass

BUFFER_BYTES = 512 * 2**20  # far more than any L3 cache holds
ROWS, INNER, OUTER = 1024, 2048, 2048
REPEATS = 5


@dataclass(frozen=True)
class Limits:
    """What the machine gave at one moment, the best of `REPEATS`.

    Read: torch matrix × vector over `BUFFER_BYTES` of FP32. INT8: torch quantized linear (oneDNN where it has it), u8 × i8, and FP32: torch
    matmul, both of ROWS × INNER × OUTER.
    """

    read_bytes_per_s: float
    int8_ops_per_s: float
    fp32_ops_per_s: float


class Probe:
    """Measures the limits; holds its buffers between calls."""

    def __init__(self, threads: int):
        import torch

        torch.set_num_threads(threads)
        if "onednn" in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = "onednn"
        self.matrix, self.vector = torch.ones(BUFFER_BYTES // 4 // 4096, 4096), torch.ones(4096)
        self.inputs, self.weight = torch.randn(ROWS, INNER), torch.randn(OUTER, INNER)
        self.inputs_u8 = torch.quantize_per_tensor(self.inputs, 0.05, 128, torch.quint8)
        # 7 bits: products of full range saturate where two of them are added in 16 bits; the speed is the same.
        weight_i8 = torch.quantize_per_tensor(self.weight.clamp(-1, 1), 1 / 64, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(weight_i8, None)

    def measure(self) -> Limits:
        import torch

        operations = 2 * ROWS * INNER * OUTER
        with torch.inference_mode():
            return Limits(
                BUFFER_BYTES / _best(lambda: self.matrix @ self.vector),
                operations / _best(lambda: torch.ops.quantized.linear(self.inputs_u8, self.packed, 1.0, 128)),
                operations / _best(lambda: self.inputs @ self.weight.T),
            )


def _best(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
