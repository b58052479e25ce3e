"""A stream outlives its socket: who comes back gets the events that he missed, and no other ones."""

import asyncio
import json
import urllib.request

import pytest
from tornado.websocket import websocket_connect

from gpt2opt.apps.ui import streams
from gpt2opt.apps.ui.choices import Choice
from tests.apps.ui.conftest import request, serving, slow_models, talk, tokens_of

NAME = "0123456789abcdef"


@pytest.fixture(scope="module")
def slowly(run_dir, tmp_path_factory):
    """The address of a server whose models take 10 ms for a token."""
    with slow_models(0.01), serving(tmp_path_factory.mktemp("ui"), [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        yield address


async def begin(address: str, message: dict, events: int) -> list[dict]:
    """Ask for a stream, and leave after some of its events."""
    socket = await websocket_connect(address.replace("http", "ws") + "/stream")
    await socket.write_message(json.dumps(message))
    heard = [json.loads(await socket.read_message()) for _ in range(events)]
    socket.close()
    return heard


@pytest.mark.parametrize(("ask", "precisions"), [("generate", ["fp32"]), ("compare", ["fp32", "w8a8"])])
def test_a_stream_is_picked_up_where_it_was_left(slowly, run_dir, ask, precisions):
    message = request(run_dir, ask=ask, precisions=precisions, max_new_tokens=40, do_sample=True)
    alone = asyncio.run(talk(slowly, message))
    for left_at in (1, 2, 20):
        named = {**message, "id": f"{NAME}-{ask}-{left_at}"}
        first = asyncio.run(begin(slowly, named, left_at))
        rest = asyncio.run(talk(slowly, {**named, "from": left_at}))
        assert tokens_of(first + rest) == tokens_of(alone)
        assert [event["event"] for event in first + rest].count("end") == 1
        assert tokens_of(asyncio.run(talk(slowly, named))) == tokens_of(alone)  # it is kept when it has ended


def test_two_windows_hear_one_stream(slowly, run_dir):
    message = {**request(run_dir, max_new_tokens=30), "id": f"{NAME}-two"}

    async def together():
        return await asyncio.gather(talk(slowly, message), talk(slowly, message))

    first, second = asyncio.run(together())
    assert first == second
    assert len(tokens_of(first)) == 30


def test_a_stream_is_stopped_by_one_who_picked_it_up(slowly, run_dir):
    message = {**request(run_dir, max_new_tokens=200), "id": f"{NAME}-stop"}
    first = asyncio.run(begin(slowly, message, 4))
    rest = asyncio.run(talk(slowly, {**message, "from": len(first)}, 5))
    assert rest[-1]["event"] == "end"
    assert 5 <= len(tokens_of(rest)) < 150


def test_one_without_an_id_ends_with_its_socket(slowly, run_dir):
    asyncio.run(begin(slowly, request(run_dir, max_new_tokens=200), 6))
    for _ in range(100):
        with urllib.request.urlopen(f"{slowly}/state") as reply:
            if not json.load(reply)["streams"]:
                return
    raise AssertionError("it goes on, though nobody can hear it")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"id": "unknown-stream", "from": 7},
            "was started anew and does not know this text any more. What had come is kept; Go on continues it",
        ),
        ({"id": "short"}, "stream id 'short', expected 8 to 64 letters and digits"),
        ({"id": 12345678}, "stream id '12345678', expected 8 to 64 letters and digits"),
        ({"id": f"{NAME}-bad", "from": -1}, "was started anew"),
        ({"id": "../../etc/passwd"}, "expected 8 to 64 letters and digits"),
    ],
)
def test_a_stream_that_is_not_known_gets_one_line(tell, run_dir, changed, said):
    (event,) = tell({**request(run_dir), **changed})
    assert event["event"] == "error"
    assert said in event["text"]
    assert "\n" not in event["text"]


def test_the_last_streams_are_kept_and_no_more(tell, run_dir, monkeypatch):
    monkeypatch.setattr(streams, "KEPT_STREAMS", 2)
    for number in range(3):
        tell({**request(run_dir, max_new_tokens=3), "id": f"{NAME}-kept-{number}"})
    for number, known in ((2, True), (1, True), (0, False)):
        event = tell({**request(run_dir), "id": f"{NAME}-kept-{number}", "from": 1})[-1]
        assert (event["event"] == "end") == known


def test_the_end_says_how_long_it_took(tell, run_dir):
    events = tell(request(run_dir, max_new_tokens=20))
    last = [event for event in events if event["event"] == "token"][-1]
    assert events[-1]["took_s"] >= last["speed"]["prefill_s"] + last["speed"]["decode_s"]


def test_what_fails_is_said_in_plain_words(tell, run_dir, monkeypatch, caplog):
    def fail(*_):
        raise AttributeError("'NoneType' object has no attribute 'x'")

    monkeypatch.setattr(streams, "answers", fail)
    event = tell(request(run_dir))[-1]
    assert event == {
        "event": "error",
        "text": "gpt2opt failed at this text, and the terminal that it runs in says more. Try again, or other settings",
    }
    assert "NoneType" in caplog.text


def count(address: str, **asked) -> dict:
    with urllib.request.urlopen(f"{address}/tokens", data=json.dumps(asked).encode()) as reply:
        return json.load(reply)


def test_a_prompt_is_counted(address, run_dir, tokenizer, monkeypatch):
    for prompt in ("", "Node", "Node 7 of graph\n" * 50, "ä€😀"):
        found = count(address, model=str(run_dir), precision="fp32", prompt=prompt)
        assert found == {"tokens": len(tokenizer(prompt).input_ids)}
    assert count(address, model="bundled", precision="w4", prompt="a graph")["tokens"] == 2  # it is not loaded, nor made
    monkeypatch.setattr("gpt2opt.apps.ui.models.cached_snapshot", lambda *_: None)
    assert count(address, model="gpt2-large", precision="fp32", prompt="a") == {"tokens": None}
    assert "model 'gpt3' is not known" in count(address, model="gpt3", precision="fp32", prompt="a")["error"]
    with urllib.request.urlopen(f"{address}/tokens", data=b"{") as reply:
        assert json.load(reply) == {"error": streams.NO_REQUEST}


@pytest.mark.parametrize(
    ("answers", "offered"), [(False, ["gpt2-medium", "bundled"]), (True, ["gpt2", "gpt2-medium", "gpt2-large", "bundled"])]
)
def test_sizes_that_cannot_be_had_are_not_offered(run_dir, tmp_path, monkeypatch, answers, offered):
    monkeypatch.setattr("gpt2opt.apps.ui.choices.cached_snapshot", lambda size, _: size == "gpt2-medium" and tmp_path)
    monkeypatch.setattr("gpt2opt.apps.ui.server.hub_answers", lambda: answers)
    with serving(tmp_path / "ui", [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        for page in ("facts", "state"):
            with urllib.request.urlopen(f"{address}/{page}") as reply:
                assert json.load(reply)["models"] == [*offered, str(run_dir)]
