"""How this project reads a GPT-2 graph of OpenVINO: its matmuls, their stored weights, and the quantizers of their inputs."""

import numpy as np
from openvino import Model, Node, Output, Tensor
from openvino.op import Constant


def matmuls(graph: Model) -> list[Node]:
    """Return the matmuls of the blocks and of the head, those with a stored weight, in the order they run."""
    return [node for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul" and stored_weight(node)]


def is_head(matmul: Node) -> bool:
    return "lm_head" in matmul.get_friendly_name()


def activation_quantizer(matmul: Node) -> Node | None:
    """Return the node that rounds a matmul's input to INT8, if there is one."""
    source = matmul.input_value(0).get_node()
    return source if source.get_type_name() == "FakeQuantize" else None


def stored_weight(matmul: Node) -> Node | None:
    """Return the constant that a matmul's weight is stored in; None for a product of two activations."""
    return stored_constant(matmul.input_value(1))


def stored_constant(value: Output) -> Node | None:
    """Return the constant that a value comes from, seen through decompression and changes of layout; None if there is none."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose", "FakeQuantize"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def weight_scales(matmul: Node) -> np.ndarray:
    """Return the scales (O, 1) that a matmul's INT8 weight is multiplied by."""
    return constant_data(matmul.input_value(1).get_node().input_value(1))


def over_same_memory(constant: Node, shape: list[int], rows: slice = slice(None)) -> Constant:
    """Return a constant of another shape, or of some rows, over the same memory: a Reshape would be folded into a copy of the weights.

    The memory belongs to the file. It lives as long as any constant that was read from it, and every graph keeps the embeddings.
    """
    return Constant(Tensor(constant.data[rows], shape, constant.get_element_type()))


def num_channels(rows: Output) -> int:
    """Return C of activations (tokens, 1, C)."""
    return rows.get_partial_shape()[-1].get_length()


def constant_data(value: Output) -> np.ndarray:
    return value.get_node().get_data()


def quantizer_step(node: Node) -> float:
    """Return the width of a quantizer's steps; 0 for any other node."""
    if node.get_type_name() != "FakeQuantize":
        return 0.0
    lowest, highest = (constant_data(node.input_value(port)) for port in (3, 4))
    return float((highest - lowest).min()) / (node.get_attributes()["levels"] - 1)
