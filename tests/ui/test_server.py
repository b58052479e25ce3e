"""The server by its sockets: what it answers, whom a stop concerns, and twenty people at once."""

import asyncio
import json
import urllib.error
import urllib.request

import pytest
from tornado.httpclient import HTTPClientError
from tornado.websocket import websocket_connect

from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text_generation import generate_text
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.ui.choices import Choice
from tests.ui.conftest import request, serving, slow_models, talk, tokens_of

USERS = 20


def get(address: str, path: str, **headers) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}{path}", headers=headers)) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_an_answer_is_what_the_library_generates(tell, run_dir, float_dir, tokenizer):
    events = tell(request(run_dir, max_new_tokens=12, do_sample=True, seed=3))
    settings = DecodingSettings(max_new_tokens=12, do_sample=True, seed=3, top_logprobs=6)
    (expected,) = generate_text(load_ir(float_dir), tokenizer, ["Node 7 of graph"], settings)
    found = tokens_of(events)
    assert [token["id"] for token in found] == list(expected.ids)
    assert "".join(token["text"] for token in found) == expected.text
    for token, top in zip(found, expected.top, strict=True):
        assert len(token["others"]) == 5
        ids = [each for each, _ in top]
        assert token["rank"] == (ids.index(token["id"]) + 1 if token["id"] in ids else None)
        assert [piece for piece, _ in token["others"]] == [tokenizer.decode([each]) for each in ids if each != token["id"]][:5]
    last = [event for event in events if event["event"] == "token"][-1]
    assert last["finish"] == "length"
    assert last["speed"]["decoded"] == 11
    assert last["speed"]["prompt_tokens"] == len(tokenizer("Node 7 of graph").input_ids)
    assert events[-1]["event"] == "end"
    assert events[-1]["rss_bytes"] > 0


def test_the_cost_of_int8_is_that_of_the_run(tell, run_dir, address):
    ready = next(event for event in tell(request(run_dir, ask="load", precisions=["w8a8"])) if event["event"] == "ready")
    cost = ready["cost"]
    assert cost["kl_interval"][0] < cost["kl_nats"] < cost["kl_interval"][1]
    assert cost["weight_bytes"] > 0
    status, body = get(address, f"/cost?model={run_dir}&precision=w8a8")
    assert (status, json.loads(body)["cost"]) == (200, cost)


def test_twenty_people_get_the_answers_that_each_would_get_alone(address, run_dir):
    messages = [
        request(
            run_dir, f"Node {user} of graph", precisions=[("fp32", "w8a8")[user % 2]], max_new_tokens=30, do_sample=user % 3 > 0, seed=user
        )
        for user in range(USERS)
    ]

    async def together():
        return await asyncio.gather(*[talk(address, message) for message in messages])

    alone = [tokens_of(asyncio.run(talk(address, message))) for message in messages]
    assert [tokens_of(events) for events in asyncio.run(together())] == alone
    assert len({tuple(token["id"] for token in tokens) for tokens in alone}) > USERS / 2


@pytest.mark.parametrize("how", ["stop", "close"])
def test_nobody_waits_for_another_ones_stop(how, run_dir, tmp_path):
    """Ten of twenty leave at their fifth token; the ten others get all of theirs, and no later than if nobody had left."""
    count, leave_at = 40, 5

    async def leaver(address, message):
        if how == "stop":
            return tokens_of(await talk(address, message, leave_at))
        socket = await websocket_connect(address.replace("http", "ws") + "/stream")
        await socket.write_message(json.dumps(message))
        while json.loads(await socket.read_message())["event"] != "token":
            pass
        socket.close()
        return []

    async def together(address):
        messages = [request(run_dir, f"Node {user}", max_new_tokens=count) for user in range(USERS)]
        return await asyncio.gather(
            *[leaver(address, message) if user % 2 else talk(address, message) for user, message in enumerate(messages)]
        )

    with slow_models(0.002), serving(tmp_path, [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        found = asyncio.run(together(address))
        assert json.loads(get(address, "/state")[1])["streams"] == 0
    for user, events in enumerate(found):
        if user % 2 == 0:
            assert len(tokens_of(events)) == count
        elif how == "stop":
            assert leave_at <= len(events) < count
            assert events[-1]["finish"] == "stopped"


def test_a_stop_while_the_model_is_loaded_ends_at_once_and_the_model_comes(run_dir, tmp_path):
    async def stop_at_once(address):
        socket = await websocket_connect(address.replace("http", "ws") + "/stream")
        await socket.write_message(json.dumps(request(run_dir)))
        first = json.loads(await socket.read_message())
        assert first["event"] == "progress"
        await socket.write_message(json.dumps({"stop": True}))
        events = [json.loads(message) async for message in messages(socket)]
        loaded = json.loads(await asyncio.to_thread(lambda: get(address, "/state")[1]))["loaded"]
        return [event["event"] for event in events], loaded, await talk(address, request(run_dir, ask="load"))

    with slow_models(load_s=0.5), serving(tmp_path, [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        events, loaded, then = asyncio.run(stop_at_once(address))
    assert events == ["end"]
    assert loaded == []
    assert then[-2]["event"] == "ready"


async def messages(socket):
    while (message := await socket.read_message()) is not None:
        yield message


def test_the_server_answers_while_it_loads_and_while_it_generates(run_dir, tmp_path):
    async def look_meanwhile(address):
        stream = asyncio.create_task(talk(address, request(run_dir, max_new_tokens=60)))
        states = []
        while not stream.done():
            states.append(json.loads((await asyncio.to_thread(get, address, "/state"))[1]))
        return states

    with slow_models(0.01, load_s=0.5), serving(tmp_path, [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        states = asyncio.run(look_meanwhile(address))
    assert any(not state["loaded"] for state in states)  # answered while it was loaded
    assert any(state["streams"] for state in states)  # and while it wrote


def test_two_who_ask_for_one_model_wait_for_one_loading(run_dir, tmp_path):
    async def together(address):
        return await asyncio.gather(*[talk(address, request(run_dir, ask="load")) for _ in range(2)])

    with slow_models(load_s=0.3), serving(tmp_path, [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        for events in asyncio.run(together(address)):
            assert [event["event"] for event in events] == ["progress", "ready", "end"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": ""}, "the prompt is empty: write at least a word"),
        ({"prompt": "Node " * 400}, "fit into the context of 256: shorten it"),
        ({"settings": {"max_new_tokens": 256}}, "256 new tokens don't fit into the context of 256"),
        ({"settings": {"top_p": 0}}, "top_p=0, expected a number above 0 and at most 1"),
        ({"settings": {"temperature": 0}}, "temperature=0, expected a number above 0"),
        ({"model": "gpt3"}, "model 'gpt3' is not known; expected one of gpt2"),
        ({"precisions": ["int9"]}, "precision 'int9' is not known; expected one of fp32"),
        ({"precisions": []}, "expected a list of 1"),
        ({"ask": "sing"}, "ask='sing', expected load, generate or compare"),
        ({"settings": 3}, "settings=3, expected an object"),
    ],
)
def test_bad_input_is_one_line(tell, run_dir, changed, said):
    event = tell({**request(run_dir), **changed})[-1]
    assert event["event"] == "error"
    assert said in event["text"]
    assert "\n" not in event["text"]


def test_a_long_prompt_is_cut_when_asked(tell, run_dir):
    events = tell({**request(run_dir, "Node " * 400, max_new_tokens=6), "truncate": True})
    assert [event["speed"]["prompt_tokens"] for event in events if event["event"] == "token"] == [250] * 6


@pytest.mark.parametrize("message", ["{", "[]", '"x"'])
def test_what_is_no_request_is_refused(tell, message):
    assert tell(message)[-1]["event"] == "error"


def test_other_pages_get_nothing(address):
    """A foreign page may neither open a socket here, nor have its own name resolved to this machine."""

    async def foreign():
        from tornado.httpclient import HTTPRequest

        await websocket_connect(HTTPRequest(address.replace("http", "ws") + "/stream", headers={"Origin": "http://evil.example"}))

    with pytest.raises(HTTPClientError, match="403"):
        asyncio.run(foreign())
    assert get(address, "/facts")[0] == 200
    assert get(address, "/facts", Host="evil.example")[0] == 404
    assert get(address, "/../server.py")[0] in (403, 404)


def test_the_page_asks_for_nothing_from_elsewhere(address):
    for name in ("", "page.js", "show.js", "stream.js", "page.css"):
        status, body = get(address, f"/{name}")
        assert status == 200
        assert "https:" not in body
        assert "http:" not in body.replace("http://www.w3.org/2000/svg", "")
