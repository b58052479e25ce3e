"""A reverse proxy before the page, as in JupyterHub and Codespaces: a path prefix, another name, https, and connections that break."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tornado.httpclient
import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

PREFIX = "/user/me/proxy/7860"


class Proxy:
    """Passes requests below `PREFIX` on to a server.

    keeps_host: whether the server learns the name that was asked for, as from JupyterHub, or its own, as from Codespaces. down: nothing
    is passed on.
    """

    def __init__(self, target: str, keeps_host: bool):
        self.target, self.keeps_host, self.down = target, keeps_host, False
        self.sockets: set[ProxySocket] = set()

    def headers(self, request) -> dict[str, str]:
        host = request.host if self.keeps_host else self.target.removeprefix("http://")
        return {"Host": host, **{name: request.headers[name] for name in ("Origin", "Content-Type") if name in request.headers}}

    def cut(self) -> None:
        """Break all connections, and let no new one through until `down` is False."""
        self.down = True
        self.loop.call_soon_threadsafe(lambda: [socket.close() for socket in self.sockets])


class ProxyRequest(tornado.web.RequestHandler):
    def initialize(self, proxy: Proxy) -> None:
        self.proxy = proxy

    async def get(self, path: str) -> None:
        if self.proxy.down:
            return self.set_status(502)
        query = f"?{self.request.query}" if self.request.query else ""
        body = self.request.body if self.request.method == "POST" else None
        reply = await tornado.httpclient.AsyncHTTPClient().fetch(
            f"{self.proxy.target}/{path}{query}",
            method=self.request.method,
            headers=self.proxy.headers(self.request),
            body=body,
            raise_error=False,
        )
        self.set_status(reply.code)
        for name in ("Content-Type", "Content-Security-Policy"):
            if name in reply.headers:
                self.set_header(name, reply.headers[name])
        self.finish(reply.body)

    post = get


class ProxySocket(tornado.websocket.WebSocketHandler):
    def initialize(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def check_origin(self, origin: str) -> bool:
        return True

    def open(self) -> None:
        self.proxy.sockets.add(self)
        address = self.proxy.target.replace("http", "ws") + "/stream"
        asked = tornado.httpclient.HTTPRequest(address, headers=self.proxy.headers(self.request))
        self.behind = asyncio.ensure_future(tornado.websocket.websocket_connect(asked))
        self.relaying = asyncio.ensure_future(self.relay())  # tornado hands on no message before this method returns

    async def relay(self) -> None:
        with contextlib.suppress(tornado.websocket.WebSocketClosedError, tornado.httpclient.HTTPError, OSError):
            while not self.proxy.down and (message := await (await self.behind).read_message()) is not None:
                await self.write_message(message)
        self.close()

    async def on_message(self, message: str) -> None:
        await (await self.behind).write_message(message)

    def on_close(self) -> None:
        self.proxy.sockets.discard(self)
        self.behind.add_done_callback(lambda done: done.exception() or done.result().close())


@contextmanager
def proxied(target: str, keeps_host: bool = True, certificate: tuple[str, str] | None = None) -> Iterator[tuple[Proxy, int]]:
    """Run a proxy in a thread; yield it and its port. certificate: files of a certificate and its key, for https."""
    proxy, ready = Proxy(target, keeps_host), threading.Event()
    (socket,) = tornado.netutil.bind_sockets(0, "127.0.0.1")

    async def work() -> None:
        proxy.loop = asyncio.get_running_loop()
        rules = [(rf"{PREFIX}/stream", ProxySocket, {"proxy": proxy}), (rf"{PREFIX}/(.*)", ProxyRequest, {"proxy": proxy})]
        secure = None
        if certificate:
            secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            secure.load_cert_chain(*certificate)
        tornado.httpserver.HTTPServer(tornado.web.Application(rules), ssl_options=secure).add_sockets([socket])
        ready.set()
        await asyncio.Event().wait()

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield proxy, socket.getsockname()[1]
    proxy.loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(proxy.loop)])
    thread.join(10)
