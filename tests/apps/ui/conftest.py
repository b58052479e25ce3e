"""A run's folder with tiny models, a server of the page in a thread of this process, and its clients."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gpt2opt.apps.ui.choices import Choice
from gpt2opt.apps.ui.models import Library
from gpt2opt.apps.ui.server import Server, bind, listen
from gpt2opt.apps.ui.turns import Turns
from gpt2opt.runtime import ir_model
from tests.report.conftest import make_record


@pytest.fixture(scope="session")
def run_dir(float_dir, quantized, tmp_path_factory) -> Path:
    """What a run leaves: an IR in FP32, one in INT8, and the record."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(float_dir, folder / "4-control-fp32")
    shutil.copytree(quantized[0], folder / "4-quantize")
    make_record().write(folder / "run.json")
    return folder


@contextmanager
def serving(out: Path, models: list[str], first: Choice, hosts: Sequence[str] = ()) -> Iterator[str]:
    """Serve the page in a thread; yield its address."""
    ready, addresses, loop = threading.Event(), [], asyncio.new_event_loop()
    server = Server(Library(out), models, first, hosts)

    async def work() -> None:
        addresses.append(listen(server, bind(0)))
        ready.set()
        await asyncio.Event().wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(swallow(work())), daemon=True)
    thread.start()
    ready.wait(10)
    yield addresses[0]
    loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    thread.join(10)
    end(server.turns)


def end(turns: Turns) -> None:
    """Stop all streams, and wait for their last turns."""
    while len(turns):
        for stream in list(turns._running):
            stream.stop()
        turns._thread.submit(bool).result()
    turns._thread.shutdown()


async def swallow(work) -> None:
    with suppress(asyncio.CancelledError):
        await work


@pytest.fixture(scope="module")
def address(run_dir, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("ui"), [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        yield address


class SlowModel:
    """A model that takes its time, so that a person, or a test, can do something meanwhile."""

    def __init__(self, model, pause_s: float):
        self.model, self.pause_s = model, pause_s

    def __getattr__(self, name):
        return getattr(self.model, name)

    def decoder(self, *arguments):
        return SlowDecoder(self.model.decoder(*arguments), self.pause_s)


class SlowDecoder:
    def __init__(self, decoder, pause_s: float):
        self.decoder, self.pause_s = decoder, pause_s

    def prefill(self):
        return self.decoder.prefill()

    def decode(self, ids):
        time.sleep(self.pause_s)
        return self.decoder.decode(ids)


@contextmanager
def slow_models(pause_s: float = 0.01, load_s: float = 0.0):
    """Let every model that is loaded meanwhile be slow."""
    load = ir_model.load_ir

    def load_slowly(folder):
        time.sleep(load_s)
        return SlowModel(load(folder), pause_s)

    ir_model.load_ir = load_slowly
    try:
        yield
    finally:
        ir_model.load_ir = load


def request(run_dir: Path, prompt: str = "Node 7 of graph", ask: str = "generate", precisions=("fp32",), **settings) -> dict:
    return {"ask": ask, "model": str(run_dir), "precisions": list(precisions), "prompt": prompt, "settings": settings}


async def talk(address: str, message: dict | str, stop_after: int | None = None) -> list[dict]:
    """Ask for a stream and return its events; ask it to stop after some tokens."""
    from tornado.websocket import websocket_connect

    socket = await websocket_connect(address.replace("http", "ws") + "/stream")
    await socket.write_message(message if isinstance(message, str) else json.dumps(message))
    events, tokens = [], 0
    while (received := await socket.read_message()) is not None:
        events.append(json.loads(received))
        tokens += events[-1]["event"] == "token"
        if tokens == stop_after:
            await socket.write_message(json.dumps({"stop": True}))
            stop_after = None
    return events


def tokens_of(events: list[dict]) -> list[dict]:
    """Return the tokens among events, without how fast they came."""
    return [{name: value for name, value in event.items() if name != "speed"} for event in events if event["event"] == "token"]


@pytest.fixture(scope="package")
def slow_address(run_dir, tmp_path_factory):
    """The page of a server whose models take 20 ms for a token."""
    out = tmp_path_factory.mktemp("ui")
    with slow_models(0.02), serving(out, [str(run_dir)], Choice(str(run_dir), "fp32"), ["hub.example"]) as address:
        yield address


@pytest.fixture(scope="package")
def opened(slow_address, tmp_path_factory):
    browser = pytest.importorskip("tests.apps.ui.browser", reason="no selenium; the extra `test` brings it", exc_type=ImportError)
    if reason := browser.why_no_browser():
        pytest.skip(reason)
    page = browser.Page(slow_address, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture
def page(opened, slow_address):
    """The page as at the first visit, in a window of its usual size."""
    opened.address = slow_address
    opened.driver.get(f"{slow_address}/page.css")  # where nothing stores anything
    opened.driver.execute_script("localStorage.clear(); sessionStorage.clear()")
    opened.resize(1280)
    opened.open()
    opened.complaints()
    yield opened
    assert not [each for each in opened.complaints() if not any(name in each for name in ("ERR_CONNECTION", "502", "favicon"))]


@pytest.fixture
def tell(address):
    return lambda *arguments: asyncio.run(talk(address, *arguments))
