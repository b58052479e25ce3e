"""The weights of a GPT-2 in the graph of an IR file, for the decode step: the same integers that the audit reads."""

from dataclasses import dataclass

import numpy as np
from openvino import Model, Node, Output

from gpt2opt.runtime.graph import constant_data, matmuls, source_of, stored_constant

PARTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""The matmuls of a layer, in the order they run."""


class NotCoveredError(Exception):
    """The graph has something that the decode step does not compute; the message says what."""


@dataclass(frozen=True)
class Matmul:
    """rows: (O, I), int8 with a scale for each row, or float32; scales, bias: (O,); gains, shifts: (I,) of the norm before it, or empty."""

    name: str
    rows: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    gains: np.ndarray
    shifts: np.ndarray


@dataclass(frozen=True)
class Gpt2Weights:
    """Views of the file, which stays mapped as long as `graph` lives.

    matmuls: those of `PARTS` of each layer, then the head. heads: of each layer; width: of each head. epsilon: of the norms.
    embedding: (V, E), int8 with `embedding_scales` (V,), or float32. positions: (context, E) float32.
    """

    graph: Model
    matmuls: tuple[Matmul, ...]
    heads: tuple[int, ...]
    width: int
    epsilon: float
    embedding: np.ndarray
    embedding_scales: np.ndarray | None
    positions: np.ndarray


def read_weights(graph: Model) -> Gpt2Weights:
    """Find the weights by their places in the graph of an IR file, before any pass; raise `NotCoveredError` if it has another form."""
    nodes, norms = matmuls(graph), [node for node in graph.get_ordered_ops() if node.get_type_name() == "MVN"]
    epsilons = {float(node.get_attributes()["eps"]) for node in norms}
    if len(nodes) % 4 != 1 or len(norms) != len(nodes) // 2 + 1 or len(epsilons) != 1:
        raise NotCoveredError(f"{len(nodes)} matmuls, {len(norms)} norms and {len(epsilons)} epsilons are no GPT-2")
    heads, widths, found = [], set(), []
    for number, node in enumerate(nodes):
        name = "lm_head" if node is nodes[-1] else f"h.{number // 4}.{PARTS[number % 4]}"
        source = source_of(node.input_value(0), "FakeQuantize", "Reshape", "Transpose")
        gains = shifts = np.zeros(0, np.float32)
        if name.endswith("attn.c_proj"):
            _expect(source, "ScaledDotProductAttention")
            heads.append(source.get_input_partial_shape(0)[1].get_length())
            widths.add(source.get_input_partial_shape(0)[3].get_length())
            if source.get_input_size() > 4 and not np.isclose(constant_data(source.input_value(4)), max(widths) ** -0.5):
                raise NotCoveredError(f"{source.get_friendly_name()} has a scale of its own")
        elif name.endswith("mlp.c_proj"):
            _expect(source, "Gelu", approximation_mode="TANH")
        else:
            gains, shifts = _norm(source, node.get_input_partial_shape(0)[-1].get_length())
        found.append(Matmul(name, *_linear(node), gains, shifts))
    if len(widths) != 1 or max(widths) % 8:
        raise NotCoveredError(f"heads of the widths {sorted(widths)}, expected one, a multiple of 8")
    if len({matmul.rows.dtype for matmul in found}) != 1:
        raise NotCoveredError("some weights are INT8 and some float")
    looked_up = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Gather" and stored_constant(node.input_value(0))]
    tokens, positions = (_stored(node.input_value(0)) for node in looked_up if node.get_output_partial_shape(0).rank.get_length() == 3)
    return Gpt2Weights(graph, tuple(found), tuple(heads), max(widths), epsilons.pop(), *tokens, positions[0])


def _expect(node: Node, kind: str, **attributes: str | bool) -> None:
    found = {name: node.get_attributes()[name] for name in attributes} if node.get_type_name() == kind else {}
    if node.get_type_name() != kind or found != attributes:
        raise NotCoveredError(f"{node.get_friendly_name()} is {node.get_type_name()} {found}, expected {kind} {attributes}")


def _norm(last: Node, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return gains and shifts of a LayerNorm, given its last node; the exporter leaves gains of 1 and shifts of 0 out."""
    found = {"Multiply": np.ones(size, np.float32), "Add": np.zeros(size, np.float32)}
    for kind in ("Add", "Multiply"):
        if last.get_type_name() == kind and (constant := stored_constant(last.input_value(1))):
            found[kind] = constant.get_data().reshape(-1) + np.zeros(size, np.float32)
            last = last.input_value(0).get_node()
    _expect(last, "MVN")
    return found["Multiply"], found["Add"]


def _linear(matmul: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weight, scales and bias of a matmul."""
    _expect(matmul, "MatMul", transpose_b=True)
    rows, scales = _stored(matmul.input_value(1))
    bias = np.zeros(len(rows), np.float32)
    for port in matmul.output(0).get_target_inputs():
        if port.get_node().get_type_name() == "Add" and (constant := stored_constant(port.get_node().input_value(1))):
            bias = constant.get_data().reshape(-1).astype(np.float32)
    return rows, np.ones(len(rows), np.float32) if scales is None else scales, bias


def _stored(value: Output) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a stored table (rows, columns), and the scale of each row, or None for float numbers."""
    node, scales = value.get_node(), None
    if node.get_type_name() == "Multiply":
        node, scales = node.input_value(0).get_node(), constant_data(node.input_value(1)).reshape(-1)
    node = source_of(node.output(0), "Convert")
    _expect(node, "Constant")
    kind = node.get_element_type().get_type_name()
    if kind not in ("f32", "f16") + ("i8",) * (scales is not None) or len(node.get_output_shape(0)) != 2:
        raise NotCoveredError(f"{node.get_friendly_name()} is stored as {kind} {list(node.get_output_shape(0))}")
    table = node.data if kind != "f16" else node.get_data().astype(np.float32)
    if scales is not None and scales.size != len(table):
        raise NotCoveredError(f"{node.get_friendly_name()} has {scales.size} scales for {len(table)} rows")
    return table, scales
