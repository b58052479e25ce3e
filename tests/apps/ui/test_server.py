"""The server by its sockets: what it answers, whom a stop concerns, and twenty people at once."""

import asyncio
import http.client
import json
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message

import pytest
from tornado.websocket import websocket_connect

from gpt2opt.apps.ui import answers as ui_answers
from gpt2opt.apps.ui import models
from gpt2opt.apps.ui.choices import Choice
from gpt2opt.apps.ui.models import Cost, Library, Prepared
from gpt2opt.apps.ui.server import PAGE_FILES
from gpt2opt.apps.ui.streams import NO_REQUEST
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.runtime.ir_model import load_ir
from tests.apps.ui.conftest import request, serving, slow_models, talk, tokens_of

USERS = 20
LONG = "a prompt that takes long to tokenize"


def get(address: str, path: str, **headers) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}{path}", headers=headers)) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def too_early(*_):
    raise AssertionError("it was refused too late")


def test_an_answer_is_what_the_library_generates(tell, run_dir, float_dir, tokenizer):
    events = tell(request(run_dir, max_new_tokens=12, do_sample=True, seed=3))
    settings = DecodingSettings(max_new_tokens=12, do_sample=True, seed=3, top_logprobs=6)
    (expected,) = generate(load_ir(float_dir), ["Node 7 of graph"], settings, tokenizer)
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


@pytest.fixture
def tokenizing(monkeypatch):
    """Let the tokenizing of prompts that hold `LONG` begin, and end when it is allowed to: returns the two events."""
    begun, allowed = threading.Event(), threading.Event()
    tokenize = ui_answers.encode_prompt

    def tokenize_when_allowed(tokenizer, prompt, *options):
        if LONG in prompt:
            begun.set()
            assert allowed.wait(60)
        return tokenize(tokenizer, prompt, *options)

    monkeypatch.setattr(ui_answers, "encode_prompt", tokenize_when_allowed)
    yield begun, allowed
    allowed.set()


@pytest.mark.parametrize("precisions", [["fp32"], ["fp32", "w8a8"]])
def test_nobody_waits_while_a_long_prompt_is_tokenized(precisions, address, run_dir, tokenizing):
    """A stream begins and ends, another one goes on, and the page answers, while somebody else's prompt is tokenized."""
    begun, allowed = tokenizing
    ask_for = "compare" if len(precisions) > 1 else "generate"

    async def together():
        running = asyncio.create_task(talk(address, request(run_dir, "Node 1", max_new_tokens=200)))
        slow = asyncio.create_task(talk(address, request(run_dir, LONG, ask_for, precisions, max_new_tokens=3)))
        assert await asyncio.to_thread(begun.wait, 60)
        other = await asyncio.wait_for(talk(address, request(run_dir, "Node 7", max_new_tokens=5)), 30)
        first = await asyncio.wait_for(running, 30)
        state = await asyncio.wait_for(asyncio.to_thread(get, address, "/state"), 30)
        assert not slow.done()
        allowed.set()
        return other, first, state, await asyncio.wait_for(slow, 30)

    other, first, state, slow = asyncio.run(together())
    assert (len(tokens_of(other)), len(tokens_of(first)), state[0]) == (5, 200, 200)
    assert len(tokens_of(slow)) == 3 * len(precisions)


def test_a_stop_while_the_prompt_is_tokenized_ends_the_stream(address, run_dir, tokenizing):
    begun, allowed = tokenizing

    async def stop():
        socket = await websocket_connect(address.replace("http", "ws") + "/stream")
        await socket.write_message(json.dumps(request(run_dir, LONG)))
        assert await asyncio.to_thread(begun.wait, 60)
        await socket.write_message(json.dumps({"stop": True}))
        events = [json.loads(message)["event"] async for message in messages(socket)]
        allowed.set()
        return events

    assert asyncio.run(stop())[-1] == "end"
    assert json.loads(get(address, "/state")[1])["streams"] == 0


def test_a_loaded_tokenizer_may_be_called_by_several_threads(float_dir, run_dir, tmp_path, monkeypatch):
    """A call that changes the tokenizer fails while another thread calls it: only the first one may, before anybody has it."""
    folder = shutil.copytree(float_dir, tmp_path / "ir")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text("{}")  # one that transformers loads; a `FastTokenizer` never changes
    monkeypatch.setattr(models, "prepare", lambda *_: Prepared("tiny", folder, Cost()))
    loaded = Library(tmp_path).ask(Choice(str(run_dir), "fp32"), lambda _: None).result(60)
    assert loaded.tokenizer.backend_tokenizer.truncation is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": ""}, "the prompt is empty: write at least a word"),
        ({"prompt": "\ud800"}, "character 0 of the prompt is not text"),
        ({"settings": {"top_p": 0}}, "top_p=0, expected a number above 0 and at most 1"),
    ],
)
def test_what_can_be_refused_at_once_is_refused_before_anything_is_loaded(tell, run_dir, monkeypatch, changed, said):
    monkeypatch.setattr(Library, "ask", too_early)
    (event,) = tell({**request(run_dir), **changed})
    assert event["event"] == "error"
    assert said in event["text"]
    assert "\n" not in event["text"]


def test_a_message_that_is_too_large_is_not_read(address, run_dir):
    async def send():
        socket = await websocket_connect(address.replace("http", "ws") + "/stream")
        await socket.write_message(json.dumps(request(run_dir, "a" * 2**20)))
        assert await socket.read_message() is None
        return socket.close_code

    assert asyncio.run(send()) in (1009, None)  # None: the connection was cut before the code was read
    assert get(address, "/state")[0] == 200


def test_the_longest_prompt_of_any_script_is_read_before_it_is_refused(tell, run_dir):
    for character in ("a", "\u20ac", "\U0001f600", "\x01"):
        assert (
            "fit into the context of 256: shorten it"
            in tell(json.dumps(request(run_dir, character * 131_072), ensure_ascii=False))[-1]["text"]
        )


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
        ({"settings": {"max_new_tokens": 10**9}}, "1000000000 new tokens don't fit into the context of 256"),
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


@pytest.mark.parametrize("message", ["{", "[]", '"x"', "[" * 100_000, "1" * 5000, "{}", '{"ask": "generate"}'])
def test_what_is_no_request_is_refused_in_plain_words(tell, message):
    assert tell(message)[-1] == {"event": "error", "text": NO_REQUEST}


OWN = ("127.0.0.1", "127.0.0.1:80", "localhost", "LocalHost:80", "localhost.", "[::1]", "[::1]:80")
FOREIGN = (
    "evil.example", "127.0.0.1.evil.example", "127.0.0.1.evil.example:80", "127.0.0.1x", "127.0.0.100", "127x0x0x1",
    "localhost.evil.example", "evil.localhost", "xlocalhost", "localhost..", "LOCALHOST.EVIL.EXAMPLE", "[::1].evil.example",
    "[::12]", "0.0.0.0",
)  # fmt: skip


def ask(address: str, target: str = "/facts", method: str = "GET", **headers: str) -> tuple[int, Message]:
    """Send a request as it is written here, which a client that tidies addresses up would not; return the status and the headers."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    connection.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    reply = connection.getresponse()
    connection.close()
    return reply.status, reply.headers


def open_socket(address: str, **headers: str) -> tuple[int, Message]:
    """Ask for a web socket; it is opened if the status is 101."""
    handshake = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }
    return ask(address, "/stream", **handshake, **headers)


@pytest.mark.parametrize("host", OWN)
def test_the_server_answers_to_its_own_names(address, host):
    assert ask(address, Host=host)[0] == 200
    assert open_socket(address, Host=host, Origin=f"http://{host}")[0] == 101


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_name_that_is_resolved_to_this_machine_gets_nothing(address, host):
    for target in ("/facts", "/", "/page.js", "/cost", "/state"):
        assert ask(address, target, Host=host)[0] == 403
    assert open_socket(address, Host=host, Origin=f"http://{host}")[0] == 403


def test_a_foreign_name_is_told_what_to_do(address):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/", headers={"Host": "hub.example"}))
    assert refused.value.read().decode() == (
        "gpt2opt does not answer to hub.example. If this is the name of your own proxy: gpt2opt ui --host hub.example\n"
    )


@pytest.fixture(scope="module")
def proxied_address(run_dir, tmp_path_factory):
    """The address of a server that was told of a proxy."""
    with serving(tmp_path_factory.mktemp("ui"), [str(run_dir)], Choice(str(run_dir), "fp32"), ["hub.example"]) as address:
        yield address


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("hub.example", "https://hub.example", 101),  # JupyterHub: the proxy hands on the name that it was asked for
        ("127.0.0.1:7860", "https://hub.example", 101),  # Codespaces: it does not
        ("localhost", "https://hub.example:8443", 101),
        ("hub.example", "https://evil.example", 403),
        ("evil.example", "https://hub.example", 403),
        ("hub.example.evil.example", "https://hub.example.evil.example", 403),
        ("hubxexample", "https://hubxexample", 403),
        ("localhost", "https://evil.example/hub.example", 403),
        ("localhost", "https://hub.example@evil.example", 403),
        ("localhost", "null", 403),
    ],
)
def test_a_proxy_that_was_named_and_no_other_may_show_the_page(proxied_address, host, origin, status):
    assert open_socket(proxied_address, Host=host, Origin=origin)[0] == status
    assert ask(proxied_address, method="POST", Host=host, Origin=origin)[0] == (200 if status == 101 else 403)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1.evil.example", "http://localhost", "null", "http://127.0.0.1:1"]
)
def test_a_foreign_page_opens_no_socket(address, origin):
    assert open_socket(address, Origin=origin)[0] == 403


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", 200),
        ("/page.js", 200),
        ("/state", 200),
        ("/cost?model=gpt3", 200),
        ("/cost?model=%ff", 400),
        ("/page.js%00", 404),
        ("/%00", 404),
        ("/page.js%ff", 404),
        ("/..%2fserver.py", 404),
        ("/../server.py", 404),
        ("/%2e%2e/server.py", 404),
        ("//etc/passwd", 404),
        ("/page.js/", 404),
        ("/." * 5000, 404),
        (f"/{'a' * 5000}", 404),
        ("http://evil.example/facts", 403),
        ("/stream", 400),
    ],
)
def test_every_answer_is_guarded_and_an_odd_path_finds_nothing(address, target, status):
    found, headers = ask(address, target)
    assert found == status
    _check_guarded(headers)


def test_refusals_are_guarded_too(address):
    for status, headers in (
        ask(address, Host="evil.example"),
        ask(address, "/page.js", method="POST"),
        ask(address, "/page.js", Range="bytes=9999999-"),
        ask(address, "/page.js", If_None_Match="*"),
        open_socket(address, Origin="http://evil.example"),
    ):
        assert status in (304, 403, 404, 405, 416)
        _check_guarded(headers)


def _check_guarded(headers: Message) -> None:
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_only_what_the_page_offers_is_opened(tell, address, run_dir, model_dir, monkeypatch):
    """Neither another folder, nor an offered one under another name or one inside it; nobody looks into what was named."""
    monkeypatch.setattr("gpt2opt.apps.ui.server.Choice", too_early)
    for folder in (
        model_dir,
        run_dir.parent,
        run_dir / "4-quantize",
        f"{run_dir}/",
        f"{run_dir}/../{run_dir.name}",
        "/",
        ".",
        "bundled/../",
    ):
        said = f"model {str(folder)!r} is not known; expected one of gpt2, gpt2-medium, gpt2-large, bundled, {run_dir}; "
        body = json.loads(get(address, f"/cost?{urllib.parse.urlencode({'model': folder, 'precision': 'fp32'})}")[1])
        assert "cost" not in body
        for ask_for, precisions in (("load", ["fp32"]), ("generate", ["fp32"]), ("compare", ["fp32", "w8a8"])):
            (event,) = tell({**request(run_dir, ask=ask_for, precisions=precisions), "model": str(folder)})
            assert event["text"] == body["error"]
            assert said in event["text"]


def test_the_page_asks_for_nothing_from_elsewhere(address):
    for name in ("", *PAGE_FILES):
        status, body = get(address, f"/{name}")
        assert status == 200
        assert "https:" not in body
        assert "http:" not in body.replace("http://www.w3.org/2000/svg", "")
