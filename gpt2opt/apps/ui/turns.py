"""Many streams share the CPU: they take turns, one item each, on one thread."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

Start = Callable[[Callable[[], bool]], Iterator[Any]]
"""Begins a stream when its first turn comes. It is given a function that says whether the stream has been asked to stop."""


@dataclass(frozen=True)
class Ended:
    """The last thing that a stream delivers. error: what it raised, or None. waited_s: how long it waited in the queue in all."""

    error: Exception | None
    waited_s: float


@dataclass(eq=False)
class Stream:
    """A stream among others; `Turns.add` makes it."""

    start: Start
    deliver: Callable[[Any], None]
    items: Iterator[Any] | None = None
    stopped: bool = False
    waited_s: float = 0.0

    def stop(self) -> None:
        """Ask this stream, and no other, to end. One whose first turn has not come delivers nothing but its end."""
        self.stopped = True


class Turns:
    """A queue of streams. Each in turn makes one item (a token, say), on one thread, and goes to the queue's end.

    So the models are used from one thread alone, every stream waits for at most one item of each other one, and a stream's items are
    those that it would make alone.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "turns")  # its queue is first in, first out
        self._running: set[Stream] = set()

    def add(self, start: Start, deliver: Callable[[Any], None]) -> Stream:
        """Queue a stream. `deliver` is called, on the thread of the turns, with each item and, whatever ends it, with an `Ended`."""
        stream = Stream(start, deliver)
        self._running.add(stream)
        self._queue(stream)
        return stream

    def __len__(self) -> int:
        """Return how many streams have not ended."""
        return len(self._running)

    def _queue(self, stream: Stream) -> None:
        self._thread.submit(self._take_turn, stream, time.perf_counter())

    def _take_turn(self, stream: Stream, queued_at: float) -> None:
        """Let a stream make its next item and queue it again, or end it."""
        stream.waited_s += time.perf_counter() - queued_at
        error = None
        try:
            if stream.items is None and not stream.stopped:
                stream.items = stream.start(lambda: stream.stopped)
            if stream.items is not None:
                stream.deliver(next(stream.items))
                return self._queue(stream)
        except StopIteration:
            pass
        except Exception as raised:
            error = raised
        stream.items = None  # an ended stream gives back its KV cache now
        self._running.discard(stream)
        stream.deliver(Ended(error, stream.waited_s))
