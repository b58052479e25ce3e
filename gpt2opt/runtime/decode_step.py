"""A step of decoding by our own compiled code: one further token of several sequences, or several of one, from ids to logits.

`kernels.py` is the code. This file puts a model's weights into one buffer, in the order of their use, describes each phase of the step by
addresses and sizes (`step_layout.py`), and keeps the threads.
"""

import contextlib
import logging
import mmap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from gpt2opt.environment import threads
from gpt2opt.errors import raise_cause
from gpt2opt.runtime import step_layout as layout
from gpt2opt.runtime.compile import give_back_pages
from gpt2opt.runtime.ir_weights import Gpt2Weights, Matmul, NotCoveredError, read_weights
from gpt2opt.runtime.kv_cache import BLOCK, KvCache
from gpt2opt.runtime.manifest import IR_NAME, IR_WEIGHTS
from gpt2opt.runtime.object_code import CantCompileError, compiled_function

logger = logging.getLogger(__name__)
WHOLE, HEAD = 0, -1
CHUNK_BYTES, CHUNKS_PER_THREAD = 128 * 1024, 4
"""The largest chunk of a weight, and the least number of chunks per thread in a matmul: many chunks let all threads finish together, and
few of them have to be taken from the shared counter."""


def load_step(directory: Path | str, kv_cache: str, context: int, num_threads: int | None = None) -> "DecodeStep | None":
    """Return the decode step of an IR; None if it does not cover this IR, or can't be compiled here.

    kv_cache: the type of the cache. context: its tokens.
    """
    try:
        if kv_cache not in layout.CACHE_HEADER:
            raise NotCoveredError(f"a KV cache of {kv_cache}")
        weights = read_weights(openvino.Core().read_model(Path(directory, IR_NAME)))
        return DecodeStep(weights, Path(directory, IR_WEIGHTS), kv_cache, context, num_threads or threads())
    except RuntimeError as error:
        raise_cause(error)  # no memory to map the file
        raise
    except NotCoveredError as error:
        logger.info("OpenVINO decodes: %s", error)
    except CantCompileError as error:
        logger.warning("OpenVINO decodes, which takes longer: %s", error)
    return None


class DecodeStep:
    """The decode step of one model; not for use by several threads at once, see `IrModel`."""

    def __init__(self, weights: Gpt2Weights, file: Path, kv_cache: str, context: int, num_threads: int):
        """Copy the weights, which are mapped from a file; see `load_step` for the other arguments."""
        self.weights, self.stored = weights, {}  # type: ignore[var-annotated] # matmul -> its weight in the buffer, see `_write_panels`
        self._kept, self._phases = [], []  # type: ignore[var-annotated] # arrays that the compiled code has addresses of
        stored, width, parts = "i8" if weights.matmuls[0].rows.dtype == np.int8 else "f32", weights.width, iter(weights.matmuls)
        self._step = compiled_function(f"step {stored} {kv_cache} {width}")
        self._buffer, self._used = on_huge_pages(sum(map(_padded_bytes, weights.matmuls)) + 4 * layout.AHEAD), 0
        self._chunks_at_least = CHUNKS_PER_THREAD * num_threads
        channels, inner, hidden = (max(matmul.rows.shape[1] for matmul in weights.matmuls[part::4]) for part in (0, 1, 3))
        self._x, mixed, middle = (self._zeros(layout.MOST_TOKENS, _up(size, layout.COLUMNS)) for size in (channels, inner, hidden))
        results = self._zeros(layout.MOST_TOKENS, _up(max(3 * inner, channels), layout.PANEL))
        self._logits = self._zeros(layout.MOST_TOKENS, _up(len(weights.matmuls[-1].rows), layout.PANEL))
        for heads in weights.heads:
            give_back_pages(file)  # of the layer that was copied last: otherwise all pages of the file would be in memory at once
            self._add_matmul(layout.PROJECTION, next(parts), self._x, results)
            self._add_phase(layout.ATTENTION, heads, -(-heads // num_threads), results, mixed)
            self._add_matmul(layout.RESIDUAL, next(parts), mixed, results)
            self._add_matmul(layout.GELU, next(parts), self._x, middle)
            self._add_matmul(layout.RESIDUAL, next(parts), middle, results)
        self._add_matmul(layout.PROJECTION, next(parts), self._x, self._logits)
        self._add_phase(layout.PROJECTION, 0, 1, results, results)  # the end
        self._table = np.array([[phase.get(name, 0) for name in layout.PHASE] for phase in self._phases], np.int64)
        self._slots, self._positions = np.zeros(layout.MOST_TOKENS, np.int64), np.zeros(layout.MOST_TOKENS, np.int64)
        normed, scores = self._zeros(num_threads, *self._x.shape), self._zeros(num_threads + inner // width, context + BLOCK)
        plan = {
            "total": self._phases[-1]["first"], "head": self._phases[-2]["first"], "phases": _address(self._table), "context": context,
            "slots": _address(self._slots), "positions": _address(self._positions), "x": _address(self._x), "x_stride": self._x.shape[1],
            "channels": channels, "normed": _address(normed), "scores": _address(scores),
        }  # fmt: skip
        self._plan = np.array([plan.get(name, 0) for name in layout.PLAN], np.int64)
        self._plan.view(np.float32)[2 * layout.PLAN.index("epsilon")] = weights.epsilon
        memory: Any = np.zeros(layout.STATE_SIZE + 8, np.int64)
        self._state = memory[-(_address(memory) // 8) % 8 :]  # from the beginning of a cache line on
        self._state[layout.TICKET] = plan["total"]  # so that no thread finds work before the first step
        self._arguments = _address(self._plan), _address(self._state)
        self._cache_of: Callable[[], KvCache | None] = lambda: None  # the cache that the table has the addresses of, while it lives
        # An interrupt may fall between the lock and what gives it back: then the thread that has it may take it again.
        self._lock, self._wake, self._open = threading.RLock(), threading.Event(), [True]
        memory = self._plan, self._state, self._table
        for worker in range(1, num_threads):
            # Between two steps a thread reads no weights, so that it need not keep them in memory.
            help_ = (self._step, self._arguments, worker, self._wake, self._open, memory)
            with contextlib.suppress(RuntimeError):  # no room for one more thread: the others do its work
                threading.Thread(target=_help, args=help_, daemon=True).start()
        weakref.finalize(self, _stop, self._wake, self._open)

    def __call__(self, cache: KvCache, ids: np.ndarray, slots: np.ndarray | int, positions: np.ndarray) -> np.ndarray:
        """Read further tokens, ids (T,) of at most `MOST_TOKENS`, of the texts in these slots of the cache, at these positions.

        The logits (T, V) hold until the next call. Those of a token are the same bits however many tokens are read with it.
        """
        count, weights = len(ids), self.weights
        embedded = weights.embedding[ids].astype(np.float32)
        if weights.embedding_scales is not None:
            embedded *= weights.embedding_scales[ids, None]
        embedded += weights.positions[positions]
        with self._used_by_one_thread():
            if self._cache_of() is not cache:
                for kind in ("key", "value"):
                    addresses = [_address(cache.memory[f"{kind}_cache.{layer}"]) for layer in range(len(weights.heads))]
                    self._table[1 : 5 * len(addresses) : 5, layout.PHASE.index(f"{kind}s")] = addresses
                self._cache_of = weakref.ref(cache)
            self._slots[:count], self._positions[:count] = slots, positions
            return self.run(embedded, WHOLE)

    def head(self, hidden: np.ndarray) -> np.ndarray:
        """Return the logits (rows, V) of what the last layer left (rows, E), before the last norm; rows: at most `MOST_TOKENS`."""
        with self._used_by_one_thread():
            return self.run(hidden, HEAD)

    def run(self, x: np.ndarray, what: int) -> np.ndarray:
        """Run the `WHOLE` step on embedded tokens (T, E), or the `HEAD` alone."""
        self._x[: len(x), : x.shape[1]] = x
        self._plan[layout.PLAN.index("tokens")] = len(x)
        self._wake.set()
        started = time.perf_counter_ns()
        self._step(*self._arguments, what)
        self._seconds = (time.perf_counter_ns() - started) / 1e9
        return self._logits[: len(x), : len(self.weights.matmuls[-1].rows)]

    @contextlib.contextmanager
    def _used_by_one_thread(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this model is decoding in another thread; load it once for each thread that uses it")
        try:
            yield
        finally:
            self._lock.release()

    def seconds(self) -> list[tuple[str, float, float]]:
        """Return of each phase of the last whole step its name, the seconds it took, and those of its norm, by the CPU's clock."""
        ended = np.append(self._table[:-2, layout.PHASE.index("ended")], self._state[layout.OVER])
        tick = self._seconds / (ended[-1] - self._state[layout.BEGUN])
        names = [matmul.name for matmul in self.weights.matmuls]
        for layer in range(len(self.weights.heads)):
            names.insert(5 * layer + 1, f"h.{layer}.attention")
        ticks, norms = np.diff(ended, prepend=self._state[layout.BEGUN]), self._table[:-1, layout.PHASE.index("norm_ticks")]
        norms = np.minimum(norms, ticks)  # what it took before, if thread 0 had no chunk of this phase
        return [(name, float(phase * tick), float(norm * tick)) for name, phase, norm in zip(names, ticks, norms, strict=True)]

    def _add_phase(self, kind: int, rows: int, chunk: int, inputs: np.ndarray, outputs: np.ndarray, **further: int) -> None:
        last = self._phases[-1] if self._phases else {"first": 0, "rows": 0, "chunk": 1}
        self._phases.append(
            {
                "kind": kind, "first": last["first"] + -(-last["rows"] // last["chunk"]), "rows": rows, "chunk": chunk,
                "inputs": _address(inputs), "input_stride": inputs.shape[-1],
                "outputs": _address(outputs), "output_stride": outputs.shape[-1], **further,
            }
        )  # fmt: skip

    def _add_matmul(self, kind: int, matmul: Matmul, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """Copy a weight to the end of the buffer and add its phase. inputs: of the matmul, or of the norm before it."""
        size, rows = _padded_bytes(matmul), _up(len(matmul.rows), layout.PANEL)
        self.stored[matmul.name] = _write_panels(self._buffer[self._used : self._used + size].view(matmul.rows.dtype), matmul.rows)
        chunk = min(CHUNK_BYTES, size // self._chunks_at_least) * rows // size
        norm = {"gains": self._padded(matmul.gains), "shifts": self._padded(matmul.shifts)} if matmul.gains.size else {}
        self._add_phase(
            kind, rows, max(chunk // layout.PANEL, 1) * layout.PANEL, inputs, outputs, columns=_up(matmul.rows.shape[1], layout.COLUMNS),
            weights=_address(self._buffer) + self._used, scales=self._padded(matmul.scales), biases=self._padded(matmul.bias), **norm,
        )  # fmt: skip
        self._used += size

    def _zeros(self, *shape: int) -> np.ndarray:
        self._kept.append(np.zeros(shape, np.float32))
        return self._kept[-1]

    def _padded(self, values: np.ndarray) -> int:
        """Return the address of a copy that ends with a whole panel."""
        self._zeros(_up(len(values), layout.PANEL))[: len(values)] = values
        return _address(self._kept[-1])


def _help(step: Any, arguments: tuple[int, int], worker: int, wake: threading.Event, is_open: list[bool], _memory: Any) -> None:
    """Work on steps whenever there are some; what a thread does between two of them is in `kernels.py`."""
    while wake.wait() and is_open[0]:
        wake.clear()
        step(*arguments, worker)
        if not is_open[0]:  # it may have been closed before `clear`, so that another thread would go on waiting
            wake.set()


def _stop(wake: threading.Event, is_open: list[bool]) -> None:
    is_open[0] = False
    wake.set()


def _address(array: np.ndarray) -> int:
    return array.ctypes.data


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _padded_bytes(matmul: Matmul) -> int:
    outputs, inputs = matmul.rows.shape
    return _up(outputs, layout.PANEL) * _up(inputs, layout.COLUMNS) * matmul.rows.itemsize


def on_huge_pages(size: int) -> np.ndarray:
    """Reserve memory, on huge pages where the system has them: with small ones, a virtual machine spends much time on finding pages."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(memory, np.uint8)
    except (AttributeError, OSError):  # another system, a Linux without huge pages, or no memory: then numpy says so
        return np.zeros(size, np.uint8)


def _write_panels(target: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Write a weight (O, I) by panels, with zeros up to whole ones; return them, (panels, parts of a row, `PANEL`, `COLUMNS`)."""
    columns, many = _up(rows.shape[1], layout.COLUMNS) // layout.COLUMNS, 1024 * layout.PANEL
    panels = target.reshape(-1, columns, layout.PANEL, layout.COLUMNS)
    for start in range(0, len(rows), many):  # so that no copy of all rows is made
        part = rows[start : start + many]
        part = np.pad(part, ((0, -len(part) % layout.PANEL), (0, -part.shape[1] % layout.COLUMNS)))
        part = part.reshape(-1, layout.PANEL, columns, layout.COLUMNS).transpose(0, 2, 1, 3)
        panels[start // layout.PANEL :][: len(part)] = part
    return panels
