"""`/v1` as the client of OpenAI calls it: what it answers is what the library generates, and errors are in its form."""

import http.client
import json
import re
import shlex
import shutil
import subprocess
import urllib.parse
import urllib.request

import openai
import pytest

from gpt2opt.apps.ui import completions
from gpt2opt.apps.ui.choices import Choice
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.runtime.ir_model import load_ir
from tests.apps.ui.conftest import serving, slow_models
from tests.conftest import ROOT

PROMPT = "Node 7 of graph"


@pytest.fixture(scope="module")
def client(address):
    """The key is any: the server does not look at it."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def name(run_dir) -> str:
    return f"{run_dir}:fp32"


@pytest.fixture
def ask(client, name):
    return lambda prompt=PROMPT, **options: client.completions.create(**{"model": name, "prompt": prompt, "temperature": 0, **options})


@pytest.fixture(scope="module")
def expect(float_dir, tokenizer):
    """What the library generates: `expect(prompts, ...)` with `DecodingSettings`."""
    model = load_ir(float_dir)
    return lambda *prompts, **settings: generate(model, list(prompts), DecodingSettings(**settings), tokenizer)


def test_models_are_the_ones_that_the_page_offers_in_the_precisions_that_they_have(client, run_dir, float_dir, tmp_path):
    listed = [each.id for each in client.models.list()]
    assert {f"{run_dir}:fp32", f"{run_dir}:w8a8", "bundled:w4"} <= set(listed)
    assert client.models.retrieve("bundled:w4").id == "bundled:w4"
    with serving(tmp_path, [str(float_dir)], Choice(str(float_dir), "fp32")) as address:
        other = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        assert [each.id for each in other.models.list() if each.id.startswith(str(float_dir))] == [f"{float_dir}:fp32"]
    with pytest.raises(openai.NotFoundError, match="model 'gpt-4' is not known; expected one of bundled:fp32, "):
        client.models.retrieve("gpt-4")


def test_a_text_is_what_the_library_generates(ask, expect, run_dir, tokenizer, name):
    (expected,) = expect(PROMPT, max_new_tokens=16)
    answer = ask()
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs, choice.index) == (expected.text, "length", None, 0)
    assert (answer.object, answer.model) == ("text_completion", name)
    read = len(tokenizer(PROMPT).input_ids)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (read, 16, read + 16)
    assert ask(model=str(run_dir)).choices[0].text == expected.text  # in the precision that the server was started with
    assert ask(max_tokens=3).usage.completion_tokens == 3


def test_sampling_is_that_of_the_seed_and_of_the_whole_distribution(ask, expect):
    settings = {"temperature": 0.7, "top_p": 0.9, "seed": 3}
    (expected,) = expect(PROMPT, max_new_tokens=16, do_sample=True, top_k=0, **settings)
    assert ask(**settings).choices[0].text == expected.text
    (expected,) = expect(PROMPT, max_new_tokens=16, do_sample=True, seed=3, top_k=5, min_p=0.1, typical_p=0.9, repetition_penalty=1.2)
    own = {"top_k": 5, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.2}
    assert ask(temperature=1, seed=3, extra_body=own).choices[0].text == expected.text
    assert len({ask(temperature=1, max_tokens=40).choices[0].text for _ in range(3)}) > 1  # without a seed


def test_several_prompts_as_texts_or_as_tokens_and_several_texts_of_each(ask, expect, tokenizer):
    prompts = [PROMPT, "Node 1 of", PROMPT]
    settings = {"temperature": 1.0, "seed": 5}
    expected = expect(*[each for each in prompts[:2] for _ in range(3)], max_new_tokens=16, do_sample=True, top_k=0, **settings)
    for given in (prompts[:2], [tokenizer(each).input_ids for each in prompts[:2]]):
        answer = ask(given, n=3, best_of=3, **settings)
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert [choice.text for choice in answer.choices] == [each.text for each in expected]
    assert len({choice.text for choice in answer.choices[:3]}) == 3
    assert answer.usage.prompt_tokens == sum(len(tokenizer(each).input_ids) for each in prompts[:2])
    assert ask(tokenizer(PROMPT).input_ids).choices[0].text == ask().choices[0].text


def test_the_prompt_is_repeated_on_demand(ask, tokenizer):
    for prompt in (PROMPT, tokenizer(PROMPT).input_ids):
        assert ask(prompt, echo=True).choices[0].text == PROMPT + ask().choices[0].text
    assert "".join(chunk.choices[0].text for chunk in ask(echo=True, stream=True)) == PROMPT + ask().choices[0].text


@pytest.mark.parametrize("many", [False, True])
def test_a_text_ends_before_a_stop(ask, many):
    text = ask(max_tokens=40).choices[0].text
    stop = text[9:13]
    (choice,) = ask(max_tokens=40, stop=["zzz", stop] if many else stop).choices
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_log_probabilities_are_those_of_the_model(ask, expect, tokenizer):
    (expected,) = expect(PROMPT, max_new_tokens=12, top_logprobs=3)
    (choice,) = ask(max_tokens=12, logprobs=3).choices
    found = choice.logprobs
    assert found.tokens == [tokenizer.decode([each]) for each in expected.ids]
    assert found.token_logprobs == pytest.approx(expected.logprobs)
    for token, offset, top, others in zip(found.tokens, found.text_offset, found.top_logprobs, expected.top, strict=True):
        broken = "\ufffd"  # a byte that is no character: it is known as such when the next token comes
        assert choice.text[offset:].lstrip(broken).startswith(token.lstrip(broken))
        assert top == pytest.approx({tokenizer.decode([each]): logprob for each, logprob in reversed(others)})
    sampled = ask(max_tokens=30, logprobs=0, temperature=2, seed=1).choices[0].logprobs
    assert [{token: value} for token, value in zip(sampled.tokens, sampled.token_logprobs, strict=True)] == sampled.top_logprobs


@pytest.mark.parametrize("options", [{}, {"n": 3, "logprobs": 2, "temperature": 1, "seed": 2}, {"stop": "graph", "max_tokens": 40}])
def test_a_stream_is_the_same_piece_by_piece(ask, options):
    whole, chunks = ask(**options), [*ask(**options, stream=True, stream_options={"include_usage": True})]
    *chunks, last = chunks
    assert (last.choices, last.usage) == ([], whole.usage)
    assert len(chunks) == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(each.text for each in own) == choice.text
        assert [each.finish_reason for each in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert [token for each in own for token in (each.logprobs.tokens if each.logprobs else [])] == (
            choice.logprobs.tokens if choice.logprobs else []
        )
    assert not any(chunk.usage for chunk in ask(stream=True))


def test_a_stream_is_server_sent_events_up_to_the_word_that_ends_it(address, name):
    asked = json.dumps({"model": name, "prompt": PROMPT, "max_tokens": 2, "stream": True}).encode()
    with urllib.request.urlopen(f"{address}/v1/completions", asked) as reply:
        assert reply.headers["Content-Type"] == "text/event-stream"
        *events, last, nothing = reply.read().decode().split("\n\n")
    assert [json.loads(event.removeprefix("data: "))["object"] for event in events] == ["text_completion"] * 2
    assert (last, nothing) == ("data: [DONE]", "")


WRONG = {
    "no prompt": ({"prompt": None}, "prompt", "prompt=None, expected a text"),
    "empty list": ({"prompt": []}, "prompt", "prompt=[], expected a text"),
    "number as prompt": ({"prompt": 5}, "prompt", "prompt=5, expected a text"),
    "no text": ({"prompt": ["a", True]}, "prompt", "expected a text"),
    "empty prompt": ({"prompt": ["a", ""]}, "prompt", "the prompt is empty"),
    "half a character": ({"prompt": "a \ud800"}, "prompt", "character 2 of the prompt is not text"),
    "token beyond the vocabulary": ({"prompt": [[1], [10**9]]}, "prompt", "token ids from 1000000000"),
    "no model": ({"model": None}, "model", "model=None, expected a name that /v1/models lists"),
    "temperature": ({"temperature": "hot"}, "temperature", "temperature=hot, expected a number from 0"),
    "negative temperature": ({"temperature": -1}, "temperature", "temperature=-1, expected a number"),
    "top_p": ({"top_p": 2}, "top_p", "top_p=2, expected a number above 0 and at most 1"),
    "seed": ({"seed": -1}, "seed", "seed=-1, expected a whole number"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens", "max_tokens=0, expected a whole number of at least 1"),
    "n": ({"n": 0}, "n", "n=0, expected at least 1"),
    "too many texts": ({"prompt": ["a"] * 11, "n": 3}, "n", "n=3, expected at least 1, and at most 32 texts in all"),
    "logprobs": ({"logprobs": 6}, "logprobs", "logprobs=6, expected a whole number from 0 to 5"),
    "logprobs as of chats": ({"logprobs": True}, "logprobs", "logprobs=True, expected a whole number"),
    "stops": ({"stop": ["a"] * 5}, "stop", "expected up to 4 texts"),
    "empty stop": ({"stop": [""]}, "stop", "expected up to 4 texts, none of them empty"),
    "echo of log-probabilities": ({"echo": True, "logprobs": 1}, "echo", "echo=True, expected false beside logprobs"),
    "stream": ({"stream": "yes"}, "stream", "stream=yes, expected true or false"),
    "stream_options": ({"stream_options": {"other": 1}}, "stream_options", "expected an object with include_usage alone"),
    "penalty": ({"presence_penalty": 0.5}, "presence_penalty", "the parameter presence_penalty is not supported; leave it out"),
    "best_of": ({"best_of": 3}, "best_of", "the parameter best_of is not supported"),
    "of a chat": ({"messages": []}, "messages", "the parameter messages is not supported"),
}


def post(address: str, body, path: str = "/v1/completions", **headers) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc)
    connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), headers)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_refused_by_name(case, stream, address, name):
    changed, param, message = WRONG[case]
    status, body = post(address, {"model": name, "prompt": "Node", "stream": stream, **changed})
    assert status == 400
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["param"], body["error"]["code"]) == ("invalid_request_error", param, None)
    assert message in body["error"]["message"]
    assert "\n" not in body["error"]["message"]


def test_what_has_no_effect_is_taken(ask):
    expected = ask().choices[0].text
    options = {"user": "me", "suffix": "", "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0.0, "best_of": 1, "stop": None}
    assert ask(**options).choices[0].text == expected


def test_a_prompt_that_is_too_long_is_named_as_such_or_cut_on_demand(ask):
    for options in ({"prompt": PROMPT * 100}, {"prompt": [5] * 300, "stream": True}, {"max_tokens": 256}):
        with pytest.raises(openai.BadRequestError, match="into the context of 256") as refused:
            ask(**options)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert ask(PROMPT * 100, extra_body={"truncate": True}).usage.prompt_tokens == 240


def test_an_unknown_model_is_404_and_so_is_one_that_cannot_be_had(ask, tmp_path):
    for name in ("gpt-4", "gpt-4:w8a8", str(tmp_path)):
        with pytest.raises(openai.NotFoundError, match="is not known; expected one of gpt2, ") as refused:
            ask(model=name)
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "out", [str(tmp_path / "empty")], Choice(str(tmp_path / "empty"), "fp32")) as address:
        status, body = post(address, {"model": str(tmp_path / "empty"), "prompt": "a"})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "no config.json in" in body["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_request_is_refused(body, address):
    status, answer = post(address, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "no object in JSON" in answer["error"]["message"]


def test_other_addresses_and_methods_are_refused_in_the_same_form(client, address):
    with pytest.raises(openai.NotFoundError, match="expected /v1/models or /v1/completions: there is no chat"):
        client.chat.completions.create(model="bundled", messages=[])
    assert post(address, {}, "/v1/models")[0] == 405
    assert post(address, {}, "/v1")[0] == 404


def test_a_foreign_page_gets_nothing(address, name):
    """A browser sends such a request without asking first, since its body may be plain text."""
    asked = {"model": name, "prompt": "Node", "max_tokens": 1}
    status, body = post(address, asked, Origin="http://elsewhere.example")
    assert (status, "elsewhere.example may not ask" in body["error"]["message"]) == (403, True)
    assert post(address, asked, Origin=address)[0] == 200


def test_an_error_of_the_server_is_named_as_one(address, name, monkeypatch):
    def fail(error):
        def failing(*_):
            yield {"index": 0, "text": "a", "logprobs": None, "finish_reason": None}
            raise error

        monkeypatch.setattr(completions, "choices", failing)

    asked = {"model": name, "prompt": "Node"}
    for error, status in ((MemoryError(), 503), (KeyError("ours"), 500)):
        fail(error)
        found, body = post(address, asked)
        assert (found, body["error"]["type"]) == (status, "server_error")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.APIError, match="ours"):  # and not a text that only looks as if it had ended
        list(client.completions.create(**asked, stream=True))


def streams(address: str) -> int:
    with urllib.request.urlopen(f"{address}/state") as reply:
        return json.load(reply)["streams"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_own_text_alone(stream, run_dir, tmp_path):
    with slow_models(0.02), serving(tmp_path, [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        options = {"model": str(run_dir), "prompt": PROMPT, "max_tokens": 200}
        client.completions.create(**options | {"max_tokens": 1})  # loads the model
        if stream:
            answer = client.completions.create(**options, stream=True)
            next(iter(answer))
            assert streams(address) == 1  # the first token came before the others were made
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(**options, timeout=1)
        assert client.completions.create(**options | {"max_tokens": 30}).usage.completion_tokens == 30
        assert streams(address) == 0


@pytest.mark.parametrize("kind", ["sh", "python"])
def test_the_examples_of_the_document_run(kind, address, run_dir, capsys):
    (block,) = re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    block = block.replace("http://127.0.0.1:7860", address).replace("bundled:w8a8", f"{run_dir}:w8a8")
    if kind == "python":
        exec(block, {})
        assert "completion_tokens=32" in capsys.readouterr().out
    elif shutil.which("curl"):
        models, texts = (json.loads(subprocess.check_output([*shlex.split(line), "--silent"])) for line in block.splitlines()[1:])
        assert models["object"] == "list"
        assert texts["usage"]["completion_tokens"] == 12
