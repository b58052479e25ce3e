"""What OpenVINO counts, as a trace."""

from types import SimpleNamespace

import pytest

from gpt2opt.measure.call_tree import FRAME, call_tree, operator_table, recorded
from gpt2opt.measure.ir_trace import Log, count_nodes, shown_as
from gpt2opt.runtime.ir_model import load_ir


@pytest.fixture(scope="module", params=[("float_dir", "step"), ("quantized", "step"), ("quantized", "openvino")], ids=" ".join)
def case(request):
    """A fixture with an IR, and what decodes."""
    return request.param


@pytest.fixture(scope="module")
def content(request, case):
    made, decoded_by = request.getfixturevalue(case[0]), case[1]
    model = load_ir(made[0] if case[0] == "quantized" else made, count_time=True, decode=decoded_by)
    (content,) = count_nodes([model], [1, 2, 3, 4, 5, 6, 7, 8], 3)
    return content


def test_the_trace_has_each_call_once_and_the_nodes_within(content, case):
    root = call_tree(recorded(content["traceEvents"]))
    assert [(call.name, call.calls) for call in root.children.values()] == [("prefill", 1), ("decode", 2)]
    expected = {"prefill": {"graph", "head"}, "decode": {"decode step"} if case[1] == "step" else {"graph", "head"}}
    assert {call.name: {graph.name for graph in call.children.values()} for call in root.children.values()} == expected
    assert all(any(graph.children for graph in call.children.values()) for call in root.children.values())
    assert all(row.notes for row in operator_table(root))
    assert content["gpt2opt"]["runtime"].startswith("OpenVINO 20")


@pytest.mark.parametrize(
    ("kind", "name", "kernel", "expected"),
    [
        ("Convolution", "__module.transformer.h.0.attn.c_attn/aten::linear/MatMul.0", "I8", ("MatMul attn.c_attn", "Convolution I8")),
        ("FullyConnected", "__module.transformer.h.11.mlp.c_fc/aten::linear/Add", "f32", ("MatMul mlp.c_fc", "FullyConnected f32")),
        ("FullyConnected", "__module.lm_head/aten::linear/MatMul", "f32", ("MatMul lm_head", "FullyConnected f32")),
        ("MatMul", "MatMul_17", "f32", ("MatMul", "MatMul f32")),
        ("Transpose", "__module.transformer.h.0.attn.c_attn/x", "f32", ("Transpose", "f32")),
    ],
)
def test_a_matmul_is_named_by_its_layer_whatever_the_plugin_makes_of_it(kind, name, kernel, expected):
    assert shown_as(SimpleNamespace(node_type=kind, node_name=name, exec_type=kernel)) == expected


def test_nodes_stand_one_after_another_and_within_their_call():
    log = Log()
    log.add("user_annotation", "graph", 100, 10)
    node, unused = ("Add", "f32", "a", 8e-6), ("Result", "f32", "b", 0.0)
    log.add_nodes(lambda: [node, unused, node])
    assert [(event["name"], event["ts"], event["dur"]) for event in log.events[1:]] == [("Add", 100, 5), ("Add", 105, 5)]
    assert log.paused_us > 0


def test_a_decode_step_shows_attention_norms_and_matmuls_by_their_layer(content, case):
    if case[1] == "step":
        (step,) = call_tree(recorded(content["traceEvents"])).children[FRAME, "decode"].children.values()
        parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head")
        assert {node.name for node in step.children.values()} == {"LayerNorm", "Attention", *(f"MatMul {part}" for part in parts)}


def test_no_node_lies_outside_of_its_call(content):
    root = call_tree(recorded(content["traceEvents"]))
    for node in root.walk():
        assert sum(child.cpu_us for child in node.children.values()) <= node.cpu_us * (1 + 1e-9)


def test_irs_take_turns_and_the_fastest_recording_of_each_is_kept(float_dir, monkeypatch):
    order: list[int] = []
    call = Log.call

    def logged(log: Log, name: str, *arguments, **told):
        if name.startswith("ProfilerStep"):
            logs = known.setdefault(id(log), len(known))
            order.append(logs)
        returned = call(log, name, *arguments, **told)
        if name.startswith("ProfilerStep"):
            log.events[-1]["dur"] = 1e9 + (logs - 0.5) * len(order)  # the first gets faster, the second slower
        return returned

    known: dict[int, int] = {}
    monkeypatch.setattr(Log, "call", logged)
    first, second = count_nodes([load_ir(float_dir, count_time=True) for _ in range(2)], [1, 2, 3, 4], 2)
    assert order == [0, 1] * 7
    assert [content["traceEvents"][-1]["name"] for content in (first, second)] == ["ProfilerStep#4", "ProfilerStep#0"]
