"""The weights of a GPT-2 in the graph of an IR file, for the decode step: the same integers that the audit reads."""

import itertools
from dataclasses import dataclass

import numpy as np
from openvino import Model, Node, Output

from gpt2opt.runtime.graph import constant_data, matmuls, stored_constant


class NotCoveredError(Exception):
    """The graph has something that the decode step does not compute; the message says what."""


@dataclass(frozen=True)
class Norm:
    gains: np.ndarray
    shifts: np.ndarray
    epsilon: float


@dataclass(frozen=True)
class Matmul:
    """rows: (O, I) int8, or float32. scales: (O,) float32, what integers are multiplied by. bias: (O,)."""

    rows: np.ndarray
    scales: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Layer:
    heads: int
    norm_1: Norm
    qkv: Matmul
    projection: Matmul
    norm_2: Norm
    mlp: Matmul
    mlp_projection: Matmul


@dataclass(frozen=True)
class Gpt2Weights:
    """All weights; the arrays are views of the file, which stays mapped as long as `graph` lives.

    width: of a head. embedding: (V, E), int8 with `embedding_scales` (V,), or float32. positions: (context, E) float32.
    """

    graph: Model
    width: int
    embedding: np.ndarray
    embedding_scales: np.ndarray | None
    positions: np.ndarray
    layers: tuple[Layer, ...]
    norm: Norm
    head: Matmul

    @property
    def matmuls(self) -> list[Matmul]:
        """All matmuls, in the order they run."""
        layers = ((layer.qkv, layer.projection, layer.mlp, layer.mlp_projection) for layer in self.layers)
        return [*itertools.chain(*layers), self.head]


def read_weights(graph: Model) -> Gpt2Weights:
    """Find the weights by their places in the graph of an IR file, before any pass; raise `NotCoveredError` for one of another form."""
    products = matmuls(graph)
    blocks, head = products[:-1], products[-1]
    if len(blocks) % 4:
        raise NotCoveredError(f"{len(products)} matmuls, expected 4 for each layer and the head")
    layers, widths = [], set()
    for attention_in, attention_out, mlp_in, mlp_out in zip(*(iter(blocks),) * 4, strict=True):
        attention = _behind(attention_out.input_value(0), "FakeQuantize", "Reshape", "Transpose")
        activation = _behind(mlp_out.input_value(0), "FakeQuantize")
        _expect(attention, "ScaledDotProductAttention")
        _expect(activation, "Gelu")
        if activation.get_attributes()["approximation_mode"] != "TANH":
            raise NotCoveredError("GELU by erf, expected GPT-2's by tanh")
        if _affine(activation.input_value(0))[0] != mlp_in.get_friendly_name():
            raise NotCoveredError(f"{activation.get_friendly_name()} does not follow {mlp_in.get_friendly_name()}")
        _, heads, _, width = attention.get_input_partial_shape(0)
        widths.add(width.get_length())
        if attention.get_input_size() > 4 and not np.isclose(float(constant_data(attention.input_value(4))), width.get_length() ** -0.5):
            raise NotCoveredError("attention has a scale of its own")
        layers.append(
            Layer(
                heads.get_length(),
                _norm(attention_in),
                _matmul(attention_in),
                _matmul(attention_out),
                _norm(mlp_in),
                _matmul(mlp_in),
                _matmul(mlp_out),
            )
        )
    if len(widths) != 1:
        raise NotCoveredError(f"heads of the widths {sorted(widths)}")
    norms, epsilons = _nodes(graph, "MVN"), {layer.norm_1.epsilon for layer in layers} | {layer.norm_2.epsilon for layer in layers}
    if len(norms) != 2 * len(layers) + 1 or len(epsilons | {_norm(head).epsilon}) != 1:
        raise NotCoveredError(f"{len(norms)} norms, expected {2 * len(layers) + 1} of one epsilon")
    tokens, places = (node for node in _nodes(graph, "Gather") if node.get_output_partial_shape(0).rank.get_length() == 3)
    embedding, scales = _stored(tokens.input_value(0))
    return Gpt2Weights(graph, widths.pop(), embedding, scales, _stored(places.input_value(0))[0], tuple(layers), _norm(head), _matmul(head))


def _nodes(graph: Model, kind: str) -> list[Node]:
    return [node for node in graph.get_ordered_ops() if node.get_type_name() == kind]


def _expect(node: Node, kind: str) -> None:
    if node.get_type_name() != kind:
        raise NotCoveredError(f"{node.get_friendly_name()} is {node.get_type_name()}, expected {kind}")


def _behind(value: Output, *kinds: str) -> Node:
    node = value.get_node()
    while node.get_type_name() in kinds:
        node = node.input_value(0).get_node()
    return node


def _affine(value: Output) -> tuple[str, Node, dict[str, np.ndarray]]:
    """Go back over a sum with a constant and a product with one, if they are there; return the node before them and the constants."""
    found: dict[str, np.ndarray] = {}
    for kind in ("Add", "Multiply"):
        node = value.get_node()
        if node.get_type_name() == kind and (constant := stored_constant(node.input_value(1))):
            found[kind] = np.asarray(constant.get_data(), np.float32).reshape(-1)
            value = node.input_value(0)
    return value.get_node().get_friendly_name(), value.get_node(), found


def _norm(matmul: Node) -> Norm:
    before = _behind(matmul.input_value(0), "FakeQuantize", "Reshape").output(0)
    _, node, found = _affine(before)
    _expect(node, "MVN")
    width = node.get_output_partial_shape(0)[-1].get_length()
    full = lambda name, value: np.broadcast_to(found.get(name, np.float32(value)), width).astype(np.float32)  # noqa: E731
    return Norm(full("Multiply", 1), full("Add", 0), float(node.get_attributes()["eps"]))


def _matmul(node: Node) -> Matmul:
    if not node.get_attributes()["transpose_b"]:
        raise NotCoveredError(f"the weight of {node.get_friendly_name()} is stored by input, expected by output")
    rows, scales = _stored(node.input_value(1))
    if rows.ndim != 2:
        raise NotCoveredError(f"the weight of {node.get_friendly_name()} has several scales in a row")
    bias = [port.get_node() for port in node.output(0).get_target_inputs()]
    bias = [
        np.asarray(constant.get_data())
        for sum_ in bias
        if sum_.get_type_name() == "Add" and (constant := stored_constant(sum_.input_value(1)))
    ]
    ones = np.ones(len(rows), np.float32)
    return Matmul(rows, ones if scales is None else scales, bias[0].reshape(-1) if bias else 0 * ones)


def _stored(value: Output) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a stored table and the scale of each of its rows, None for a table of float numbers."""
    node, scales = value.get_node(), None
    if node.get_type_name() == "Multiply":
        scales = constant_data(node.input_value(1))
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    _expect(node, "Constant")
    table = node.data if node.get_element_type().get_type_name() in ("i8", "f32") else node.get_data().astype(np.float32)
    if scales is not None and (table.dtype != np.int8 or scales.size != len(table)):
        raise NotCoveredError(f"{node.get_friendly_name()} has the type {node.get_element_type().get_type_name()}")
    return table, None if scales is None else scales.reshape(-1)
