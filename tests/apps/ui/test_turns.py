"""Streams that share one thread: in turns, each with its own end."""

import itertools
import threading

import pytest

from gpt2opt.apps.ui.turns import Ended, Turns
from tests.apps.ui.conftest import end


class Listener:
    """Keeps what a stream delivers."""

    def __init__(self, name: str, log: list | None = None):
        self.name, self.log = name, [] if log is None else log
        self.items, self.done = [], threading.Event()

    def __call__(self, item) -> None:
        self.items.append(item)
        self.log.append(self.name)
        if isinstance(item, Ended):
            self.done.set()


@pytest.fixture
def turns():
    made = Turns()
    yield made
    end(made)


@pytest.fixture
def held(turns):
    """Hold the turns until the returned function is called, so that streams can be queued behind each other."""
    gate, begun = threading.Event(), threading.Event()

    def wait(stopped):
        begun.set()
        gate.wait(10)
        yield from ()

    turns.add(wait, Listener("gate"))
    begun.wait(10)
    yield gate.set
    gate.set()


def counting(count: int):
    def start(stopped):
        for number in range(count):
            if stopped():
                return
            yield number

    return start


def test_streams_take_turns_item_by_item(turns, held):
    log: list[str] = []
    listeners = [Listener(name, log) for name in "abc"]
    for listener, count in zip(listeners, (3, 2, 3), strict=True):
        turns.add(counting(count), listener)
    assert len(turns) == 4
    held()
    for listener in listeners:
        assert listener.done.wait(10)
    assert "".join(log) == "abcabcabcac"  # the last of each is its end
    assert listeners[0].items[:-1] == [0, 1, 2]
    assert len(turns) == 0


def test_one_that_comes_later_waits_for_one_item_of_each_other(turns):
    log: list[str] = []
    ready, late = threading.Event(), Listener("late", log)

    def endless(stopped):
        while not stopped():
            ready.wait(0.001)
            yield "item"

    first, second = Listener("1", log), Listener("2", log)
    streams = [turns.add(endless, first), turns.add(endless, second)]
    turns.add(counting(5), late)
    assert late.done.wait(10)
    for stream in streams:
        stream.stop()
    places = [place for place, name in enumerate(log) if name == "late"]
    assert all(after - before == 3 for before, after in itertools.pairwise(places))


def test_a_stop_ends_one_stream_and_no_other(turns, held):
    stopped, other = Listener("stopped"), Listener("other")
    stream = turns.add(counting(1000), stopped)
    turns.add(counting(50), other)
    stopped.log = Stopper(stream, after=3)
    held()
    assert stopped.done.wait(10)
    assert other.done.wait(10)
    assert stopped.items[:-1] == [0, 1, 2]
    assert other.items[:-1] == list(range(50))


class Stopper(list):
    """A log that stops a stream after some entries."""

    def __init__(self, stream, after: int):
        self.stream, self.after = stream, after

    def append(self, entry) -> None:
        super().append(entry)
        if len(self) == self.after:
            self.stream.stop()


def test_one_that_is_stopped_in_the_queue_never_starts(turns, held):
    listener, started = Listener("queued"), []
    turns.add(lambda stopped: started.append(1) or iter(()), listener).stop()
    held()
    assert listener.done.wait(10)
    assert [type(item) for item in listener.items] == [Ended]
    assert not started


def test_a_stopped_stream_makes_nothing_more_and_frees_what_it_holds(turns, held):
    closed, listener = threading.Event(), Listener("stopped")

    def start(stopped):
        try:
            while not stopped():
                yield "item"
        finally:
            closed.set()

    listener.log = Stopper(turns.add(start, listener), after=1)
    held()
    assert listener.done.wait(10)
    assert closed.wait(10)
    assert listener.items[:-1] == ["item"]


def test_an_error_ends_its_own_stream(turns, held):
    failing, other = Listener("failing"), Listener("other")

    def start(stopped):
        yield 1
        raise ValueError("one clear line")

    turns.add(start, failing)
    turns.add(counting(3), other)
    held()
    assert failing.done.wait(10)
    assert other.done.wait(10)
    assert str(failing.items[-1].error) == "one clear line"
    assert other.items[:-1] == [0, 1, 2]
    assert other.items[-1].error is None


def test_everything_runs_on_one_thread(turns):
    seen, listener = set(), Listener("one")

    def start(stopped):
        for _ in range(3):
            seen.add(threading.current_thread().name)
            yield 0

    turns.add(start, listener)
    assert listener.done.wait(10)
    assert len(seen - {threading.current_thread().name}) == len(seen) == 1
    assert listener.items[-1].waited_s >= 0
