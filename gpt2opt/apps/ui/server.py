"""The server of the page: files, a few facts, and one web socket for each stream. It listens on this machine's own address alone."""

import asyncio
import dataclasses
import json
import logging
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

from gpt2opt import environment
from gpt2opt.apps.ui.answers import answers, read_prompt
from gpt2opt.apps.ui.choices import MESSAGE_BYTES, PRECISIONS, SIZES, Choice, decoding_settings
from gpt2opt.apps.ui.completions import routes
from gpt2opt.apps.ui.models import Library, known
from gpt2opt.apps.ui.turns import Ended, Stream, Turns
from gpt2opt.decoding.text import check_text

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
PAGE_FILES = sorted(path.name for path in PAGE.iterdir() if path.is_file())
OWN_NAMES = r"(?:127\.0\.0\.1|localhost|\[::1\])\.?$"
"""The names that a request may call this server by. Any other comes from a foreign page that had its name resolved to this machine. The
group and `$` stand here because tornado appends a missing `$`, which binds to the last alternative alone."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer, errors included: nothing in the page is fetched from elsewhere, and no other page shows it in a frame."""


class Server:
    """What all requests share: the loaded models and their turns. models: the folders that the page offers beside the sizes."""

    def __init__(self, library: Library, models: list[str], first: Choice):
        self.library, self.turns = library, Turns()
        self.offered, self.first = [*SIZES, *models], first
        self.process = psutil.Process()
        self.machine = environment.machine_label(environment.describe_cpu())

    def application(self) -> tornado.web.Application:
        application = tornado.web.Application(
            default_handler_class=NotFound, default_handler_args={"status_code": 404}, websocket_max_message_size=MESSAGE_BYTES
        )
        answers = [(rf"/{find.__name__}", Answer, {"find": find}) for find in (self.facts, self.state, self.cost)]
        files = (rf"/(|{'|'.join(map(re.escape, PAGE_FILES))})", Files, {"path": str(PAGE), "default_filename": "index.html"})
        application.add_handlers(OWN_NAMES, [*answers, *routes(self), (r"/stream", Socket, {"server": self}), files])
        return application

    async def facts(self, _: "Answer") -> dict[str, Any]:
        """Return what can be chosen, and on which machine this runs."""
        first = dataclasses.asdict(self.first)
        return {"models": self.offered, "precisions": PRECISIONS, "first": first, "machine": self.machine}

    async def state(self, _: "Answer") -> dict[str, Any]:
        """Return what goes on: memory of this process, streams at work, loaded models."""
        return {"rss_bytes": self.process.memory_info().rss, "streams": len(self.turns), "loaded": self.library.names()}

    async def cost(self, request: "Answer") -> dict[str, Any]:
        """Return what has been measured of a model in a precision."""
        try:
            choice = self.choice(request.get_query_argument("model", ""), request.get_query_argument("precision", ""))
            prepared = await asyncio.to_thread(known, choice, self.library.out)
            return {"cost": prepared and dataclasses.asdict(prepared.cost)}
        except (ValueError, OSError) as error:
            return {"cost": None, "error": str(error)}

    def choice(self, model: str, precision: str) -> Choice:
        """Return what a request chose. Only what the page offers is opened: a request may not name other folders of this machine."""
        if model not in self.offered:
            raise ValueError(
                f"model {model!r} is not known; expected one of {', '.join(self.offered)}; `gpt2opt ui FOLDER` offers another folder"
            )
        return Choice(model, precision)


class _Guarded(tornado.web.RequestHandler):
    def set_default_headers(self) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)


class NotFound(_Guarded, tornado.web.ErrorHandler):
    """Whatever has no handler, a foreign host name too."""


class Files(_Guarded, tornado.web.StaticFileHandler):
    """The page's own files, each by its name."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")


class Answer(_Guarded):
    """What a function of the server finds, as JSON."""

    def initialize(self, find: Callable[["Answer"], Awaitable[dict[str, Any]]]) -> None:
        self.find = find

    async def get(self) -> None:
        self.write(await self.find(self))


class Socket(_Guarded, tornado.websocket.WebSocketHandler):
    """One stream. The first message asks for it; `{"stop": true}`, or closing the socket, ends it.

    A message asks to `load` a model, or to `generate` or `compare`, which load what they need. Everything that is sent is an event:
    progress of loading, ready, token, and at the end either `end` or `error`. Since a socket has one stream, it can stop no other.
    """

    def initialize(self, server: Server) -> None:
        self.server = server
        self.stream: Stream | None = None
        self.stopped = False
        self.tasks: list[asyncio.Task] = []

    def on_message(self, message: str | bytes) -> None:
        # A task: tornado reads no further message, a stop for example, before this method returns.
        self.tasks.append(asyncio.create_task(self._take(message)))

    def on_close(self) -> None:
        self.stopped = True
        if self.stream:
            self.stream.stop()

    async def _take(self, message: str | bytes) -> None:
        try:
            content = json.loads(message)
            if content.get("stop"):
                self._stop()
            else:
                await self._begin(content)
        except Exception as error:
            self._fail(error)

    def _stop(self) -> None:
        self.stopped = True
        if self.stream:
            self.stream.stop()
        else:  # its model is still being loaded, which goes on: somebody else may want it
            self._end(Ended(None, 0.0))

    async def _begin(self, asked: dict[str, Any]) -> None:
        choices = [self.server.choice(asked["model"], precision) for precision in asked["precisions"]]
        settings = decoding_settings(asked.get("settings", {}))
        if asked["ask"] != "load":
            check_text(asked["prompt"])  # before a model is loaded for it
        loop, loaded = asyncio.get_running_loop(), []

        def send(item: dict[str, Any] | Ended) -> None:  # any thread may call it
            loop.call_soon_threadsafe(self._send, item)

        for choice in choices:
            loaded.append(await asyncio.wrap_future(self.server.library.ask(choice, send)))
            if self.stopped:
                return
            prepared = loaded[-1].prepared
            about = {"name": prepared.name, "context": loaded[-1].model.context, "cost": dataclasses.asdict(prepared.cost)}
            self._send({"event": "ready", **dataclasses.asdict(choice), **about})
        if asked["ask"] == "load":
            return self._end(Ended(None, 0.0))
        # Neither on this thread nor on that of the turns: it takes a second of a long prompt, and nobody waits for it there.
        ids = await asyncio.to_thread(read_prompt, loaded, asked["prompt"], settings, bool(asked.get("truncate")))
        if not self.stopped:
            self.stream = self.server.turns.add(lambda stopped: answers(loaded, ids, settings, stopped), send)

    def _end(self, ended: Ended) -> None:
        if ended.error:
            return self._fail(ended.error)
        self._send({"event": "end", "waited_s": ended.waited_s, "rss_bytes": self.server.process.memory_info().rss})
        self.close()

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, ValueError | OSError | MemoryError):
            logging.getLogger(__name__).error("a stream failed", exc_info=error)
        self._send({"event": "error", "text": str(error) or type(error).__name__})
        self.close()

    def _send(self, event: dict[str, Any] | Ended) -> None:
        if isinstance(event, Ended):
            self._end(event)
        elif self.ws_connection and not self.ws_connection.is_closing():
            self.write_message(event)


def bind(port: int) -> list[Any]:
    """Return listening sockets on this machine's own address; raise ValueError if there is no such port, or it is in use."""
    if not 0 <= port < 65536:
        raise ValueError(f"port {port}, expected one from 1 to 65535, or 0 for any that is free")
    try:
        return tornado.netutil.bind_sockets(port, HOST)
    except OSError as error:
        raise ValueError(f"port {port}: {error.strerror}; name another one with --port, or 0 for any that is free") from error


def listen(server: Server, sockets: list[Any]) -> str:
    """Answer on these sockets, in the event loop that runs; return the page's address."""
    http = tornado.httpserver.HTTPServer(server.application(), max_body_size=MESSAGE_BYTES)
    http.add_sockets(sockets)
    return f"http://{HOST}:{sockets[0].getsockname()[1]}"


def serve(out: Path, port: int, models: list[str], first: Choice, begun: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted; call `begun` with its address once it can be opened. See `Library` and `Server`."""
    sockets = bind(port)

    async def work() -> None:
        begun(listen(Server(Library(out), models, first), sockets))
        await asyncio.Event().wait()

    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        print("gpt2opt: the page is closed", file=sys.stderr)
