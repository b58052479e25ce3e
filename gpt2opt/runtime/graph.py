"""The matmuls of an OpenVINO graph, their stored weights and the quantizers of their inputs: how they are read, and passes over them."""

import numpy as np
from openvino import Model, Node, Output, Tensor
from openvino import opset13 as ops
from openvino.op import Constant

GELU_FORMS_DIFFER = 4.8e-4
"""The largest difference between GELU by erf and its approximation by tanh (Hendrycks & Gimpel 2016), which GPT-2 uses."""


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


def over_same_memory(constant: Node, shape: list[int]) -> Constant:
    """Return a constant of another shape over the same memory: a Reshape would be folded into a copy of the weights.

    The memory belongs to the file. It lives as long as any constant that was read from it, and every graph keeps the embeddings.
    """
    return Constant(Tensor(constant.data, shape, constant.get_element_type()))


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


def look_up_integers(graph: Model) -> Model:
    """Look embeddings up as INT8 and convert the rows that were found: the CPU plugin may convert the whole table, to 4 times its bytes."""
    for node in graph.get_ordered_ops():
        table = stored_constant(node.input_value(0)) if node.get_type_name() == "Gather" else None
        if table and table.get_element_type().get_type_name() == "i8":
            scales, where = node.input_value(0).get_node().input_value(1), node.input_values()[1:]
            found = ops.multiply(ops.convert(ops.gather(table, *where), "f32"), ops.gather(scales, *where))
            for consumer in node.output(0).get_target_inputs():
                consumer.replace_source_output(found.output(0))
    return graph


def gelu_by_erf(graph: Model) -> Model:
    """Compute GELU by erf instead of tanh if a quantizer follows whose steps are much wider than the difference.

    On CPUs without AVX-512 the CPU plugin's tanh is much slower than its erf.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Gelu" or node.get_attributes()["approximation_mode"] != "TANH":
            continue
        consumers = node.output(0).get_target_inputs()
        if all(quantizer_step(consumer.get_node()) > 10 * GELU_FORMS_DIFFER for consumer in consumers):
            erf = ops.gelu(node.input_value(0), "ERF")
            erf.set_friendly_name(node.get_friendly_name())
            for consumer in consumers:
                consumer.replace_source_output(erf.output(0))
    return graph


def weight_only(graph: Model) -> Model:
    """Remove the activation quantizers and keep the INT8 weights."""
    for node in matmuls(graph):
        if quantizer := activation_quantizer(node):
            node.input(0).replace_source_output(quantizer.input_value(0))
    graph.validate_nodes_and_infer_types()
    return graph
