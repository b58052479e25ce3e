"""The server's other face: `/v1/models` and `/v1/completions`, as clients of OpenAI call them. docs/api.md says what is supported."""

import asyncio
import itertools
import json
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import tornado.iostream
import tornado.web

from gpt2opt.apps.ui.choices import PRECISIONS, Choice
from gpt2opt.apps.ui.guard import foreign
from gpt2opt.apps.ui.models import Loaded, taken_as_it_is
from gpt2opt.apps.ui.turns import Ended, Stream
from gpt2opt.decoding.generation import stream
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import TextStream, decoder_of, encode_prompt, token_text
from gpt2opt.errors import text_of
from gpt2opt.settings import is_number, is_whole

DEFAULTS: dict[str, Any] = {
    "model": None, "prompt": None, "max_tokens": 16, "temperature": 1, "n": 1, "stop": [], "logprobs": None, "echo": False,
    "stream": False, "stream_options": {}, "truncate": False, "user": "",
}  # fmt: skip
SETTINGS = ("temperature", "top_p", "seed", "top_k", "min_p", "typical_p", "repetition_penalty")
"""Parameters that are settings of ours under the same name, which check them. Those from top_k on OpenAI does not have."""
MOST_TEXTS = 32
"""Texts of one request: they are a batch, and each has a KV cache."""


class Refused(tornado.web.HTTPError):
    """An error as the client gets it. param: the name of the parameter that is wrong."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(status)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def read_request(body: bytes) -> tuple[dict[str, Any], DecodingSettings]:
    """Return what a client asks for, with the defaults and with a list of prompts; raise `Refused` with the name of what is wrong."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise Refused(400, "the request is no object in JSON; expected at least a model and a prompt")
    given = {name: value for name, value in given.items() if value is not None}
    asked = DEFAULTS | given
    n, logprobs, options = asked["n"], asked["logprobs"], asked["stream_options"]
    without_effect = {"best_of": n, "suffix": "", "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0}
    for name in given.keys() - DEFAULTS.keys() - set(SETTINGS):
        if name not in without_effect or given[name] != without_effect[name]:
            raise Refused(400, f"the parameter {name} is not supported; leave it out", name)
    prompts, stops = ([value] if isinstance(value, str) or _are_ids(value) else value for value in (asked["prompt"], asked["stop"]))
    texts = isinstance(prompts, list) and prompts and all(isinstance(each, str) or _are_ids(each) for each in prompts)
    ends = isinstance(stops, list) and len(stops) <= 4 and all(isinstance(each, str) and each for each in stops)
    for name, right, expected in (
        ("model", isinstance(asked["model"], str), "a name that /v1/models lists"),
        ("prompt", texts, "a text, the token ids of one, or a list of these"),
        ("max_tokens", is_whole(asked["max_tokens"], 1), "a whole number of at least 1"),
        ("temperature", is_number(asked["temperature"], 0, 1e3), "a number from 0, for the most probable tokens, to 1000"),
        ("n", texts and is_whole(n, 1) and n * len(prompts) <= MOST_TEXTS, f"at least 1, and at most {MOST_TEXTS} texts in all"),
        ("logprobs", logprobs is None or is_whole(logprobs, 0, 5), "a whole number from 0 to 5"),
        ("stop", ends, "up to 4 texts, none of them empty"),
        ("stream_options", isinstance(options, dict) and set(options) <= {"include_usage"}, "an object with include_usage alone"),
        *((name, isinstance(asked[name], bool), "true or false") for name in ("stream", "echo", "truncate")),
        ("echo", not asked["echo"] or logprobs is None, "false beside logprobs: those of the prompt are not computed"),
    ):
        if not right:
            raise Refused(400, f"{name}={str(asked[name])[:100]}, expected {expected}", name)
    chosen = {"top_k": 0, "seed": secrets.randbits(32)} | {name: given[name] for name in SETTINGS if name in given}
    samples = asked["temperature"] > 1e-3
    if not samples:
        del chosen["temperature"]
    try:
        settings = DecodingSettings(asked["max_tokens"], samples, stop_strings=tuple(stops), top_logprobs=logprobs, **chosen)
    except ValueError as error:
        raise Refused(400, str(error), str(error).partition("=")[0]) from error
    return asked | {"prompt": prompts}, settings


def _are_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(is_whole(each, 0) for each in prompt)


def choices(
    loaded: Loaded, prompts: Sequence[list[int]], settings: DecodingSettings, echo: bool, stopped: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Yield a choice in OpenAI's form for each token, with what this token adds to it. Choice i continues prompt i."""
    decode, show = decoder_of(loaded.tokenizer), partial(token_text, loaded.tokenizer)
    before = [decode(ids) if echo else "" for ids in prompts]
    ends, texts = [0] * len(prompts), [TextStream(decode, (), ids) for ids in prompts]
    for token in stream(loaded.model, prompts, settings, loaded.tokenizer, stop=lambda _: stopped()):
        place, logprobs = token.sequence, None
        if token.top is not None:
            top = {show(token.id): token.logprob}
            for other, logprob in token.top:
                top.setdefault(show(other), logprob)  # of several that look alike, such as bytes of a character, the most probable one
            logprobs = {"tokens": [show(token.id)], "token_logprobs": [token.logprob], "top_logprobs": [top], "text_offset": [ends[place]]}
            ends[place] += len(texts[place].push(token.id))
        finish = "length" if token.finish == "length" else token.finish and "stop"
        yield {"index": place, "text": before[place] + token.text, "logprobs": logprobs, "finish_reason": finish}
        before[place] = ""


def joined(pieces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the choices that what `choices` yields makes together."""
    found: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if (choice := found.setdefault(piece["index"], piece)) is not piece:
            choice |= {"text": choice["text"] + piece["text"], "finish_reason": piece["finish_reason"]}
            for name, values in (piece["logprobs"] or {}).items():
                choice["logprobs"][name] += values
    return [found[place] for place in sorted(found)]


class Face(tornado.web.RequestHandler):
    """What all addresses below have: errors in OpenAI's form, and no answer to a foreign page. server: a `Server`."""

    def initialize(self, server: Any, begun: int) -> None:
        self.server, self.begun = server, begun

    def prepare(self) -> None:
        if name := foreign(self.request, self.settings["hosts"]):
            raise Refused(403, f"a page of {name} may not ask this server; ask it from a program, or from a page of its own")

    def write_error(self, status_code: int, **how: Any) -> None:
        error = how["exc_info"][1]
        self.finish((error if isinstance(error, Refused) else Refused(status_code, text_of(error))).body)


class Nothing(Face):
    """Any other address."""

    def prepare(self) -> None:
        raise Refused(404, f"nothing at {self.request.path[:100]}; expected /v1/models or /v1/completions: there is no chat")


class Models(Face):
    """The names of the models: each that the page offers, in each precision that it may have."""

    async def get(self, name: str | None) -> None:
        names = await asyncio.to_thread(self.names)
        models = {each: {"id": each, "object": "model", "created": self.begun, "owned_by": "gpt2opt"} for each in names}
        if name and name not in models:
            raise Refused(404, f"model {name!r} is not known; expected one of {', '.join(names)}", "model", "model_not_found")
        self.write(models[name] if name else {"object": "list", "data": list(models.values())})

    def names(self) -> list[str]:
        found = []
        for model, precision in itertools.product(self.server.shown(), PRECISIONS):
            with suppress(ValueError):  # the weights of an IR have one type, and a folder may be gone
                taken_as_it_is(Choice(model, precision))
                found.append(f"{model}:{precision}")
        return found


class Completions(Face):
    """Texts behind prompts, at once or token by token."""

    stream: Stream | None = None
    left = False

    def on_connection_close(self) -> None:
        self.left = True
        if self.stream:
            self.stream.stop()

    async def post(self) -> None:
        asked, settings = read_request(self.request.body)
        try:
            # MODEL:PRECISION, or MODEL in the precision that the server was started with
            model, _, precision = asked["model"].rpartition(":")
            named = (model, precision) if precision in PRECISIONS else (asked["model"], self.server.first.precision)
            loaded = await asyncio.wrap_future(self.server.library.ask(self.server.choice(*named), lambda _: None))
        except (ValueError, OSError) as error:
            raise Refused(404, str(error), "model", "model_not_found") from error
        about = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": asked["model"]}
        found: list[dict[str, Any]] = []
        try:
            prompts = await asyncio.to_thread(read_prompts, loaded, asked, settings)  # where the page's prompts are tokenized too
            async for piece in self.pieces(loaded, [ids for ids in prompts for _ in range(asked["n"])], settings, asked["echo"]):
                found.append(piece)
                if asked["stream"]:
                    await self.send(about | {"choices": [piece]})
        except Exception as error:
            refused = refusal(error)
            if asked["stream"] and found:  # the status has been sent
                await self.send(refused.body)
            raise refused from error
        read, written = sum(map(len, prompts)), len(found)
        usage = {"usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}}
        if not asked["stream"]:
            return self.write(about | {"choices": joined(found)} | usage)
        if asked["stream_options"].get("include_usage"):
            await self.send(about | {"choices": []} | usage)
        await self.send("[DONE]")

    async def pieces(self, *what: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield what `choices` yields, at its turns; raise what it raises."""
        items, loop = asyncio.Queue[Any](), asyncio.get_running_loop()
        if not self.left:
            self.stream = self.server.turns.add(partial(choices, *what), lambda item: loop.call_soon_threadsafe(items.put_nowait, item))
            while not isinstance(item := await items.get(), Ended):
                yield item
            if item.error:
                raise item.error

    async def send(self, event: Any) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n")
        with suppress(tornado.iostream.StreamClosedError):
            await self.flush()


def read_prompts(loaded: Loaded, asked: dict[str, Any], settings: DecodingSettings) -> list[list[int]]:
    """Return the token ids of each prompt."""
    room = loaded.model.context - settings.max_new_tokens
    encode = partial(encode_prompt, loaded.tokenizer, room=room, truncate=asked["truncate"])
    return [prompt if isinstance(prompt, list) else encode(prompt) for prompt in asked["prompt"]]


def refusal(error: Exception) -> Refused:
    """Return what a client gets of an error in a generation."""
    if isinstance(error, ValueError):
        return Refused(400, str(error), "prompt", "context_length_exceeded" if "into the context" in str(error) else None)
    if not isinstance(error, MemoryError):
        logging.getLogger(__name__).error("a completion failed", exc_info=error)
    return Refused(503 if isinstance(error, MemoryError) else 500, text_of(error))


def routes(server: Any) -> list[tuple[str, type[Face], dict[str, Any]]]:
    """Return the addresses and what answers there. server: a `Server`, whose models and turns are used."""
    given = {"server": server, "begun": int(time.time())}
    return [(r"/v1/models(?:/(.+))?", Models, given), (r"/v1/completions", Completions, given), (r"/v1(?:/.*)?", Nothing, given)]
