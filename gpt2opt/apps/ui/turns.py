"""Many streams share the CPU: they take turns, one item each, on one thread."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Start = Callable[[Callable[[], bool]], Iterator[Any]]
"""Begins a stream when its first turn comes. It is given a function that tells whether the stream has been asked to stop."""


@dataclass(frozen=True)
class Ended:
    """The last thing that a stream delivers. error: what it raised, or None. waited_s: how long it stood in the queue in all."""

    error: Exception | None
    waited_s: float


class Stream:
    """A stream among others; `Turns.add` makes it."""

    def __init__(self, start: Start, deliver: Callable[[Any], None]):
        self.start, self.deliver = start, deliver
        self.stopped = self.dropped = False
        self.waited_s = 0.0
        self.queued_at = time.perf_counter()
        self.items: Iterator[Any] | None = None

    def stop(self) -> None:
        """Ask this stream, and no other, to end. One whose first turn has not come delivers nothing but its end."""
        self.stopped = True

    def drop(self) -> None:
        """End this stream at its next turn without another item: nobody listens any more."""
        self.stopped = self.dropped = True


class Turns:
    """A queue of streams. Each in turn makes one item (a token, say), on one thread, and goes to the queue's end.

    So the models are used from one thread alone, every stream waits for at most one item of each other one, and a stream's items are
    those that it would make alone.
    """

    def __init__(self) -> None:
        self._queue: deque[Stream] = deque()
        self._changed = threading.Condition()
        self._at_work = 0
        self._open = True
        self._thread = threading.Thread(target=self._work, name="turns", daemon=True)
        self._thread.start()

    def add(self, start: Start, deliver: Callable[[Any], None]) -> Stream:
        """Queue a stream.

        Args:
            start: begins it; called on the thread of the turns, like everything that it returns.
            deliver: called there with each item, and at the end, whatever the reason, with an `Ended`.
        """
        stream = Stream(start, deliver)
        with self._changed:
            self._queue.append(stream)
            self._changed.notify()
        return stream

    def __len__(self) -> int:
        """Return how many streams have not ended."""
        with self._changed:
            return len(self._queue) + self._at_work

    def close(self) -> None:
        """Drop all streams and end the thread."""
        with self._changed:
            self._open = False
            for stream in self._queue:
                stream.drop()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while stream := self._next():
            stream.waited_s += time.perf_counter() - stream.queued_at
            goes_on = _take_turn(stream)
            with self._changed:
                self._at_work = 0
                if goes_on:
                    stream.queued_at = time.perf_counter()
                    self._queue.append(stream)
            del stream  # an ended stream gives back its KV cache now, and not when the next one comes

    def _next(self) -> Stream | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._open)
            if not self._queue:
                return None
            self._at_work = 1
            return self._queue.popleft()


def _take_turn(stream: Stream) -> bool:
    """Let a stream make its next item; return whether it goes on."""
    error = None
    try:
        if stream.items is None and not stream.stopped:
            stream.items = stream.start(lambda: stream.stopped)
        if stream.items is not None and not stream.dropped:
            stream.deliver(next(stream.items))
            return True
    except StopIteration:
        pass
    except Exception as raised:
        error = raised
    stream.items = None
    stream.deliver(Ended(error, stream.waited_s))
    return False
