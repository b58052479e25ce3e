"""Streams that outlive their sockets: each keeps what it has sent, so that a page that was reloaded or cut off picks it up again."""

import asyncio
import dataclasses
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import psutil

from gpt2opt.apps.ui.answers import answers, read_prompt
from gpt2opt.apps.ui.choices import Choice, decoding_settings
from gpt2opt.apps.ui.models import Library
from gpt2opt.apps.ui.turns import Ended, Stream, Turns
from gpt2opt.decoding.text import check_text
from gpt2opt.settings import is_whole

KEPT_STREAMS = 100  # the last ones can be picked up; a text of 1000 tokens takes less than a megabyte
NO_REQUEST = "this is no request of the page, or of a page of another version: reload it"
Listener = Callable[[str | None], None]  # gets each event, as JSON, and at the end None


def read_message(message: str | bytes) -> dict[str, Any]:
    """Return what a page asks for; raise ValueError, in one line, unless it is an object in JSON."""
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(NO_REQUEST)
    return content


class Streams:
    """All streams of the page. choose: makes a `Choice` of the model and the precision that a request names, or raises ValueError."""

    def __init__(self, library: Library, turns: Turns, choose: Callable[[str, str], Choice]):
        self.library, self.turns, self.choose = library, turns, choose
        self._kept: dict[str, KeptStream] = {}

    def open(self, asked: dict[str, Any]) -> "KeptStream":
        """Return the stream that a request names by its id, which the page makes up; begin it unless an event of it came before.

        A request without an id begins a stream that can't be picked up: it ends when nobody listens to it any more.
        """
        name = asked.get("id")
        if name is None:
            return KeptStream(self, asked)
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{8,64}", name):
            raise ValueError(f"stream id {str(name)[:80]!r}, expected 8 to 64 letters and digits")
        if name not in self._kept:
            if asked.get("from", 0) != 0:
                raise ValueError("gpt2opt was started anew and does not know this text any more. What had come is kept; Go on continues it")
            self._kept[name] = KeptStream(self, asked)
            if len(self._kept) > KEPT_STREAMS:
                del self._kept[next((old for old, stream in self._kept.items() if stream.ended), name)]
        return self._kept[name]


class KeptStream:
    """One stream, as events numbered from 0: progress of loading, ready, tokens, and at the end either `end` or `error`."""

    def __init__(self, streams: Streams, asked: dict[str, Any]):
        self.streams, self.alone = streams, asked.get("id") is None
        self.ended = self.stopped = False
        self._events: list[str] = []
        self._listeners: list[Listener] = []
        self._stream: Stream | None = None
        self._task = asyncio.create_task(self._run(asked))

    def listen(self, listener: Listener, begin: int) -> None:
        """Give a listener the events from a number on, those that were and those that come."""
        if not is_whole(begin, 0):
            raise ValueError(NO_REQUEST)
        for event in self._events[begin:]:
            listener(event)
        if self.ended:
            return listener(None)
        self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        """Give a listener no more events. The stream goes on, for one who comes back."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if self.alone and not self._listeners and not self.ended:
            self.stop()

    def stop(self) -> None:
        """End this stream, and no other."""
        self.stopped = True
        if self._stream:
            self._stream.stop()
        else:  # its model is still being loaded, which goes on: somebody else may want it
            self._end(Ended(None, 0.0))

    async def _run(self, asked: dict[str, Any]) -> None:
        try:
            await self._begin(asked)
        except Exception as error:
            self._end(Ended(error, 0.0))

    async def _begin(self, asked: dict[str, Any]) -> None:
        try:
            choices = [self.streams.choose(asked["model"], precision) for precision in asked["precisions"]]
            settings, only_load = decoding_settings(asked.get("settings", {})), asked["ask"] == "load"
        except (TypeError, KeyError, AttributeError):
            raise ValueError(NO_REQUEST) from None
        if not only_load:
            check_text(asked.get("prompt"))  # before a model is loaded for it
        loop, loaded = asyncio.get_running_loop(), []

        def send(item: dict[str, Any] | Ended) -> None:  # any thread may call it
            loop.call_soon_threadsafe(self._send, item)

        for choice in choices:
            loaded.append(await asyncio.wrap_future(self.streams.library.ask(choice, send)))
            if self.stopped:
                return
            prepared = loaded[-1].prepared
            about = {"name": prepared.name, "context": loaded[-1].model.context, "cost": dataclasses.asdict(prepared.cost)}
            self._send({"event": "ready", **dataclasses.asdict(choice), **about})
        if only_load:
            return self._end(Ended(None, 0.0))
        # Neither on this thread nor on that of the turns: it takes a second of a long prompt, and nobody waits for it there.
        ids = await asyncio.to_thread(read_prompt, loaded, asked["prompt"], settings, bool(asked.get("truncate")))
        if not self.stopped:
            self._begun = time.perf_counter()
            self._stream = self.streams.turns.add(lambda stopped: answers(loaded, ids, settings, stopped), send)

    def _send(self, item: dict[str, Any] | Ended) -> None:
        if isinstance(item, Ended):
            self._end(item)
        elif not self.ended:
            self._events.append(json.dumps(item))
            for listener in self._listeners:
                listener(self._events[-1])

    def _end(self, ended: Ended) -> None:
        text = str(ended.error)
        if ended.error and not (isinstance(ended.error, ValueError | OSError | MemoryError) and text):
            logging.getLogger(__name__).error("a stream failed", exc_info=ended.error)
            text = "gpt2opt failed at this text, and the terminal that it runs in says more. Try again, or other settings"
        took_s, rss_bytes = time.perf_counter() - self._begun if self._stream else None, psutil.Process().memory_info().rss
        end = {"event": "end", "waited_s": ended.waited_s, "took_s": took_s, "rss_bytes": rss_bytes}
        self._send({"event": "error", "text": text} if ended.error else end)
        self.ended = True
        for listener in self._listeners:
            listener(None)
