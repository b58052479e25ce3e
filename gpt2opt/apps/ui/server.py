"""The server of the page: files, a few facts, and one web socket for each stream. It listens on this machine's own address alone."""

import asyncio
import dataclasses
import json
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

from gpt2opt import environment
from gpt2opt.apps.ui.choices import MESSAGE_BYTES, PRECISIONS, SIZES, Choice, at_hand
from gpt2opt.apps.ui.completions import routes
from gpt2opt.apps.ui.guard import foreign, own_names
from gpt2opt.apps.ui.models import Library, known
from gpt2opt.apps.ui.streams import KeptStream, Streams, read_message
from gpt2opt.apps.ui.turns import Turns
from gpt2opt.sources.hub import hub_answers

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
PAGE_FILES = sorted(path.name for path in PAGE.iterdir() if path.is_file())
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer, errors included: nothing in the page is fetched from elsewhere, and no other page shows it in a frame."""


class Server:
    """What all requests share. models: the folders that are offered beside the sizes. hosts: names of proxies that may show the page."""

    def __init__(self, library: Library, models: list[str], first: Choice, hosts: Sequence[str] = ()):
        self.library, self.turns, self.hosts = library, Turns(), hosts
        self.offered, self.first = [*SIZES, *models], first
        self.streams = Streams(library, self.turns, self.choice)
        self.machine = environment.machine_label(environment.describe_cpu())
        self.had: Sequence[str] = at_hand(library.out)
        threading.Thread(target=self._ask_hub, daemon=True).start()  # it may take seconds, and the page is open before

    def _ask_hub(self) -> None:
        if hub_answers():
            self.had = SIZES

    def application(self) -> tornado.web.Application:
        not_found: dict[str, Any] = {"default_handler_class": NotFound, "default_handler_args": {"status_code": 404}}
        application = tornado.web.Application(hosts=self.hosts, websocket_max_message_size=MESSAGE_BYTES, **not_found)
        answers = [(rf"/{find.__name__}", Answer, {"find": find}) for find in (self.facts, self.state, self.cost, self.tokens)]
        files = (rf"/(|{'|'.join(map(re.escape, PAGE_FILES))})", Files, {"path": str(PAGE), "default_filename": "index.html"})
        application.add_handlers(own_names(self.hosts), [*answers, *routes(self), (r"/stream", Socket, {"server": self}), files])
        return application

    def shown(self) -> list[str]:
        """Return the models that can be had by now, as far as that is known."""
        return [model for model in self.offered if model not in SIZES or model in (*self.had, self.first.model)]

    async def facts(self, request: "Answer") -> dict[str, Any]:
        """Return what can be chosen, on which machine this runs, and what goes on."""
        state, first = await self.state(request), dataclasses.asdict(self.first)
        return {"precisions": PRECISIONS, "first": first, "machine": self.machine, **state}

    async def state(self, _: "Answer") -> dict[str, Any]:
        """Return what goes on: memory of this process, streams at work, loaded models, and the models that can be had by now."""
        rss_bytes = psutil.Process().memory_info().rss
        return {"rss_bytes": rss_bytes, "streams": len(self.turns), "loaded": self.library.names(), "models": self.shown()}

    async def cost(self, request: "Answer") -> dict[str, Any]:
        """Return what has been measured of a model in a precision."""
        choice = self.choice(request.get_query_argument("model", ""), request.get_query_argument("precision", ""))
        prepared = await asyncio.to_thread(known, choice, self.library.out)
        return {"cost": prepared and dataclasses.asdict(prepared.cost)}

    async def tokens(self, request: "Answer") -> dict[str, Any]:
        """Return how many tokens a prompt has; None if that can't be known yet. The prompt comes by POST: it may be long."""
        asked = read_message(request.request.body)
        choice = self.choice(str(asked.get("model")), str(asked.get("precision")))
        return {"tokens": await asyncio.to_thread(self.library.count, choice, str(asked.get("prompt")))}

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

    def prepare(self) -> None:
        if not (name := self.foreign()):
            super().prepare()
            return
        self.set_status(403)
        self.finish(f"gpt2opt does not answer to {name[:200]}. If this is the name of your own proxy: gpt2opt ui --host {name[:200]}\n")

    def foreign(self) -> str | None:
        # Any page may get the page's own files: under a foreign name they say what is wrong.
        return foreign(self.request, self.settings["hosts"], by_anyone=isinstance(self, Files))


class NotFound(_Guarded, tornado.web.ErrorHandler):
    """Whatever has no handler, a foreign host name too."""


class Files(_Guarded, tornado.web.StaticFileHandler):
    """The page's own files, each by its name."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")


class Answer(_Guarded):
    """What a function of the server finds, as JSON, or why not. To a POST a browser adds its origin, so that a foreign page is told so."""

    def initialize(self, find: Callable[["Answer"], Awaitable[dict[str, Any]]]) -> None:
        self.find = find

    async def get(self) -> None:
        try:
            self.write(await self.find(self))
        except (ValueError, OSError) as error:
            self.write({"error": str(error)})

    post = get


class Socket(_Guarded, tornado.websocket.WebSocketHandler):
    """One stream, see `streams`: the first message asks for it, `{"stop": true}` ends it, and no other; what is sent are its events."""

    def initialize(self, server: Server) -> None:
        self.server = server
        self.stream: KeptStream | None = None

    def check_origin(self, _: str) -> bool:
        return self.foreign() is None

    def on_message(self, message: str | bytes) -> None:
        try:
            asked = read_message(message)
            if self.stream is None:
                self.stream = self.server.streams.open(asked)
                self.stream.listen(self.hear, asked.get("from", 0))
            elif asked.get("stop"):
                self.stream.stop()
        except ValueError as error:
            self.hear(json.dumps({"event": "error", "text": str(error)}))
            self.close()

    def on_close(self) -> None:
        if self.stream:
            self.stream.leave(self.hear)

    def hear(self, event: str | None) -> None:
        if event is None:
            self.close()
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


def serve(out: Path, port: int, models: list[str], first: Choice, hosts: Sequence[str], begun: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted; call `begun` with its address once it can be opened. See `Library` and `Server`."""
    sockets = bind(port)

    async def work() -> None:
        begun(listen(Server(Library(out), models, first, hosts), sockets))
        await asyncio.Event().wait()

    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        print("gpt2opt: the page is closed", file=sys.stderr)
