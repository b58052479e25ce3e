"""What OpenVINO counts, as a trace."""

import pytest

from gpt2opt.profile.tree import call_tree, operator_table, recorded
from gpt2opt.runtime.counters import count_nodes


@pytest.fixture(scope="module", params=["float", "int8"])
def content(request, float_dir, quantized):
    return count_nodes(float_dir if request.param == "float" else quantized[0], [1, 2, 3, 4, 5, 6, 7, 8], 3)


def test_the_trace_has_each_call_once_and_the_nodes_within(content):
    root = call_tree(recorded(content["traceEvents"]))
    (step,) = root.children.values()
    assert [(call.name, call.calls) for call in step.children.values()] == [("prefill", 1), ("decode", 2)]
    for call in step.children.values():
        assert all(graph.name.endswith(("graph", "head")) for graph in call.children.values())
        assert any(graph.children for graph in call.children.values())
    rows = {row.name: row for row in operator_table(root)}
    assert rows["FullyConnected" if "FullyConnected" in rows else "Convolution"].notes
    assert content["gpt2opt"]["runtime"].startswith("OpenVINO 20")


def test_no_node_lies_outside_of_its_call(content):
    root = call_tree(recorded(content["traceEvents"]))
    for node in root.walk():
        assert sum(child.cpu_us for child in node.children.values()) <= node.cpu_us * (1 + 1e-9)
