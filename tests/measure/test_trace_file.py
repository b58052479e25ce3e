import gzip
import json

import pytest

from gpt2opt.measure import trace_file
from gpt2opt.measure.trace_file import package_name, read_trace_file, remove_trace, without_machine, write_trace


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "/home/me/env/lib/python3.11/site-packages/torch/nn/modules/module.py(1): _call_impl",
            "torch/nn/modules/module.py(1): _call_impl",
        ),
        ("/usr/lib/python3.10/contextlib.py(76): inner", "contextlib.py(76): inner"),
        ("/home/me/gpt2opt/gpt2opt/run/recorder.py(3): measure", "gpt2opt/run/recorder.py(3): measure"),
        ("/tmp/ipykernel_18116/206691909.py(10): <module>", "206691909.py(10): <module>"),
        ("transformers/cache_utils.py(98): update", "transformers/cache_utils.py(98): update"),
        ("<built-in method view of Tensor object at 0x7f1dc42dccd0>", "<built-in method view of Tensor object>"),
        ("aten::mm", "aten::mm"),
    ],
)
def test_paths_begin_at_their_package_and_addresses_are_gone(name, expected):
    assert package_name(name) == expected


def test_a_trace_is_written_without_a_word_about_the_machine(tmp_path):
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 4707314426218.776, "dur": 2.5}
    content = {
        "host_name": "somebodys-laptop", "traceName": "/tmp/somebody/x.json", "trace_id": "ABC", "baseTimeNanoseconds": 17,
        "schemaVersion": 1, "deviceProperties": [{"name": "Some GPU"}],
        "traceEvents": [{**event, "args": {"Addr": 94317283383680, "Ev Idx": 3, "Bytes": 512}}, {**event, "ts": event["ts"] + 7.25}],
    }  # fmt: skip
    path = write_trace(content, tmp_path)
    assert b"somebody" not in gzip.decompress(path.read_bytes())
    found = read_trace_file(path)
    assert set(found) == {"schemaVersion", "deviceProperties", "traceEvents"}
    assert found["traceEvents"] == [{**event, "ts": 0, "args": {"Bytes": 512}}, {**event, "ts": 7.25}]
    assert without_machine(found) == found
    again = path.read_bytes()
    assert write_trace(content, tmp_path).read_bytes() == again


def test_the_shortest_calls_of_python_are_left_out_but_not_modules_ours_and_operators():
    def event(name: str, duration: float, category: str = "python_function") -> dict:
        return {"ph": "X", "cat": category, "name": name, "ts": 0.0, "dur": duration}

    short = [event("torch/x.py(1): f", 4.9), event("<built-in function len>", 0.1)]
    kept = [event("torch/x.py(1): f", 5), event("nn.Module: Dropout_0", 1), event("gpt2opt/a.py(1): f", 1), event("aten::mm", 1, "cpu_op")]
    assert without_machine({"traceEvents": [*short, *kept]})["traceEvents"] == kept


def test_a_trace_that_is_too_large_is_refused_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_file, "MAX_BYTES", 10)
    with pytest.raises(RuntimeError, match=r"the trace takes 0\.0 MB, expected at most 0 MB; record fewer steps or fewer new tokens"):
        write_trace({"traceEvents": []}, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "large.pt.trace.json").write_text(json.dumps({"traceEvents": []}))
    with pytest.raises(ValueError, match=r"large\.pt\.trace\.json has 0\.0 MB, expected at most 0 MB; open it in Perfetto"):
        read_trace_file(tmp_path / "large.pt.trace.json")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("content", [b"", b"\x1f\x8b cut", b"null", b"{", b"[1]", b'{"traceEvents": 1}'])
def test_what_is_no_trace_is_refused(tmp_path, content, packed):
    (tmp_path / "a.pt.trace.json.gz").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=r"a\.pt\.trace\.json\.gz is no trace in Chrome's format"):
        read_trace_file(tmp_path / "a.pt.trace.json.gz")


EVENT = '{"ph": "X", "cat": "cpu_op", "name": "NAME", "pid": 1, "tid": 1, "ts": 1.5, "dur": 3, "args": {"Input Dims": [[8, 8], []]}}'
TORCHS = """
{
  "schemaVersion": 1,
  "traceEvents": [
  {
    "ph": "X",
    "cat": "cpu_op",
    "name": "aten::mm",
    "pid": 1,
    "tid": 1,
    "ts": 5181360843790.715,
    "dur": 4.775
    ,
    "args": {
      "External id": 1,"Concrete Inputs": ["", "TEXT"], "busy %": VALUE, "Ev Idx": 0
    }
  },
  {
    "ph": "X",
    "cat": "user_annotation",
    "name": "NAME",
    "pid": 1,
    "tid": 1,
    "ts": 5181360843790.715,
    "dur": 4.775
  },
  {
    "ph": "M",
    "name": "process_name",
    "ts": 5181360843623.401,
    "pid": 1,
    "tid": 0,
    "args": {
      "name": "NAME"
    }
  }
  ],"traceName": "/tmp/t.json" }
"""


def read_text(folder, text: str | bytes) -> dict:
    path = folder / "worker.pt.trace.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_trace_file(path)


@pytest.mark.parametrize(
    "name",
    [
        'prompt "Hello"', '"', '""', 'ends in a quote"', 'say "a", "b": 1', '{"pid": {"a": "b"}}', "raw line\nbreak\tand\x01control",
        "torch\\cuda\\__init__.py(219): _lazy_init", "C:\\new folder\\Desktop\\", '\\d "both"', "N/A", "nan", "",
    ],
)  # fmt: skip
def test_what_torch_does_not_escape_in_names_is_read_as_it_is_meant(tmp_path, name):
    for text in (TORCHS.replace("TEXT", "t").replace("VALUE", "N/A"), f'{{"traceEvents": [{EVENT}, {EVENT.replace("NAME", "N/A")}]}}'):
        first, *_, last = read_text(tmp_path, text.replace("NAME", name))["traceEvents"]
        assert name in (first["name"], last.get("args", {}).get("name"))
        assert last["pid"] == 1


def test_beside_a_bare_backslash_all_are_bare_and_otherwise_escapes_are_escapes(tmp_path):
    pair = f"[{EVENT}, {EVENT.replace('NAME', 'OTHER')}]"

    def names(name: str, other: str) -> list[str]:
        return [event["name"] for event in read_text(tmp_path, pair.replace("NAME", name).replace("OTHER", other))["traceEvents"]]

    assert names(r"torch\nn\functional.py", r"torch\cuda\x.py") == [r"torch\nn\functional.py", r"torch\cuda\x.py"]
    assert names(r"an escaped \"quote\"\n", 'and a "bare" one') == ['an escaped "quote"\n', 'and a "bare" one']


@pytest.mark.parametrize(("value", "read"), [("N/A", None), ("nan", None), ("-nan", None), ("inf", None), ("-inf", None), ("1e3", 1e3)])
def test_what_is_no_number_is_none_and_quotes_in_other_texts_are_read_too(tmp_path, value, read):
    content = read_text(tmp_path, TORCHS.replace("TEXT", 'N/A, "inf" and "nan"').replace("VALUE", value).replace("NAME", "a"))
    arguments = {"External id": 1, "Concrete Inputs": ["", 'N/A, "inf" and "nan"'], "busy %": read, "Ev Idx": 0}
    assert content["traceEvents"][0]["args"] == arguments


@pytest.mark.parametrize(
    "text",
    ["[EVENT]", "[null, EVENT, null]", "[EVENT,\n", "[EVENT", '{"traceEvents": [EVENT, null]}', '\ufeff{"traceEvents": [EVENT]}'],
    ids=["list", "null in a list", "no bracket behind the comma", "no bracket", "null", "byte order mark"],
)
def test_other_forms_of_a_trace_are_read_too(tmp_path, text):
    (event,) = read_text(tmp_path, text.replace("EVENT", EVENT))["traceEvents"]
    assert event == json.loads(EVENT)


def test_bytes_that_are_no_utf_8_are_read_too(tmp_path):
    (event,) = read_text(tmp_path, f"[{EVENT}]".replace("NAME", "m\xfcll.py(3): f").encode("latin-1"))["traceEvents"]
    assert event["name"] == "m\ufffdll.py(3): f"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"traceEvents": [{"name": "add", tid": 0}]}', "record_function no quotes, line breaks or backslashes"),
        (TORCHS.replace("TEXT", 'a", b: "').replace("VALUE", "1"), "record_function no quotes, line breaks or backslashes"),
        (TORCHS[:300], "it is cut short or damaged; see that there is room on the disk, and record it again"),
        ("[" * 100_000, "it is cut short or damaged"),
        ("[1]", "one of its events is of type int"),
        ('{"traceEvents": [[1]]}', "one of its events is of type list"),
    ],
    ids=["torch 1.4", "text in the arguments", "cut", "deep", "number", "list"],
)
def test_what_can_not_be_read_is_refused_in_one_line_that_says_what_to_do(tmp_path, text, told):
    with pytest.raises(ValueError, match=rf"^worker\.pt\.trace\.json is no trace in Chrome's format \(.*{told}") as refused:
        read_text(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert ("record it again" in str(refused.value)) != ("record_function" in str(refused.value))


def test_only_traces_of_ours_are_removed(tmp_path):
    for name in ("gpt2opt.pt.trace.json.gz", "mine.pt.trace.json.gz", "notes.txt"):
        (tmp_path / name).write_text("")
    remove_trace(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pt.trace.json.gz", "notes.txt"]
