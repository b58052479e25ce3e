"""How memory is laid out for the compiled decode step: what `decode_step.py` fills in and `kernels.py` reads. All numbers are int64."""

PANEL, COLUMNS = 4, 32
"""A weight is stored by panels of 4 rows: 32 numbers of each row in turn, then the next 32. So one panel is read from end to end."""
AHEAD = 4096
"""How many bytes ahead of their use weights are prefetched: where the CPU's own prefetching stops, at the end of a page."""
MOST_TOKENS = 16
"""Tokens that one step can read."""
CACHE_HEADER = {"f32": 0, "f16": 0, "u8": 8}
"""Type of the KV cache -> bytes before the numbers of each key or value of a head. In a u8 cache they are scale and zero point, float32."""

PLAN = (
    *("total", "head", "phases", "tokens", "slots", "positions", "context"),
    *("x", "x_stride", "channels", "epsilon", "normed", "scores"),
)
"""What all phases share. total: chunks of the step. head: the first chunk of the head. Strides are in numbers, from token to token."""
PHASE = (
    *("kind", "first", "chunk", "rows", "columns", "weights", "scales", "biases", "gains", "shifts"),
    *("inputs", "input_stride", "outputs", "output_stride", "keys", "values", "ended", "norm_ticks"),
)
"""A phase: a matmul and what follows it, or attention. It begins when the phases before it are done, and its work is shared out in chunks.

first: its first chunk. chunk: rows, or heads, of one. gains, shifts: of the norm before it; 0 if there is none. The step writes the CPU's
counter of time into `ended`, when the phase is done, and what the norm took in thread 0 into `norm_ticks`.
"""
PROJECTION, ATTENTION, RESIDUAL, GELU = range(4)
"""Kinds of phases. RESIDUAL and GELU are matmuls, by what follows them."""
TICKET, DONE, BEGUN, OVER = 0, 8, 16, 17
"""Where in the state of a step its counters are: number of the step and next chunk; chunks done, in another cache line; begin and end."""
STATE_SIZE = 24
CHUNK_BITS = 32
