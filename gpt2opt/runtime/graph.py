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


def activation_quantizer(matmul: Node) -> Node | None:
    """Return the node that rounds a matmul's input to INT8, if there is one."""
    source = matmul.input_value(0).get_node()
    return source if source.get_type_name() == "FakeQuantize" else None


def stored_weight(matmul: Node) -> Node | None:
    """Return the constant that a matmul's weight is stored in; None for a product of two activations."""
    return stored_constant(matmul.input_value(1))


def stored_constant(value: Output) -> Node | None:
    """Return the constant that a value comes from, seen through decompression and changes of layout; None if there is none."""
    node = source_of(value, "Convert", "Subtract", "Multiply", "Reshape", "Transpose", "FakeQuantize")
    return node if node.get_type_name() == "Constant" else None


def source_of(value: Output, *kinds: str) -> Node:
    """Return where a value comes from, seen through nodes of these kinds."""
    node = value.get_node()
    while node.get_type_name() in kinds:
        node = node.input_value(0).get_node()
    return node


def weight_scales(matmul: Node) -> np.ndarray:
    """Return the scales (O, 1) that a matmul's INT8 weight is multiplied by."""
    return constant_data(matmul.input_value(1).get_node().input_value(1))


def over_same_memory(constant: Node, shape: list[int]) -> Constant:
    """Return a constant of another shape over the same memory, that of the file: a Reshape would be folded into a copy of the weights."""
    return Constant(Tensor(constant.data, shape, constant.get_element_type()))


def constant_data(value: Output) -> np.ndarray:
    return value.get_node().get_data()


def quantizer_step(node: Node) -> float:
    """Return the width of a quantizer's steps; 0 for any other node."""
    if node.get_type_name() != "FakeQuantize":
        return 0.0
    lowest, highest = map(constant_data, node.input_values()[3:])
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


def as_convolutions(graph: Model) -> Model:
    """Write every matmul with a quantized input as a 1 × 1 convolution over the tokens: the same sums by another kernel.

    On CPUs without VNNI or AMX the plugin multiplies INT8 matrices no faster than FP32 ones, and its INT8 convolution is much faster.
    Biases, GELU, residual sums and quantizers between two convolutions stay in their layout, so that nothing is transposed in between and
    they cost no pass of their own. LayerNorms are computed on rows.
    """
    layout = _ConvolutionLayout()
    for node in graph.get_ordered_ops():
        layout.rewrite(node)
    graph.validate_nodes_and_infer_types()
    return graph


class _ConvolutionLayout:
    """The tensors of a graph that have been rewritten to (1, C, 1, tokens), by the name of the node they come from.

    A tensor that is needed in the other layout, there or as rows (tokens, 1, C), is transposed once, when it is first asked for.
    """

    def __init__(self):
        self._pixels: dict[str, Output] = {}
        self._rows: dict[str, Output] = {}
        self._rewritten: set[str] = set()

    def rewrite(self, node: Node) -> None:
        """Rewrite a node if it can work in the layout; if not, connect it to the rows of the nodes that were rewritten before it."""
        new = self._in_layout(node)
        if new:
            self._pixels[node.get_friendly_name()] = new.output(0)
            self._rewritten.add(node.get_friendly_name())
            return
        for port in node.inputs():
            if self._is_rewritten(port.get_source_output()):
                port.replace_source_output(self._as_rows(port.get_source_output()))

    def _in_layout(self, node: Node) -> Node | None:
        kind, values = node.get_type_name(), node.input_values()
        if kind == "MatMul" and stored_weight(node) and activation_quantizer(node):
            convolution = ops.convolution(self._as_pixels(values[0]), _kernel(node), [1, 1], [0, 0], [0, 0], [1, 1])
            convolution.set_friendly_name(node.get_friendly_name())  # the audit looks for it
            return convolution
        if not any(map(self._is_rewritten, values)):
            return None
        if kind in ("Add", "Multiply"):
            terms = [
                ops.constant(constant_data(value).reshape(1, -1, 1, 1)) if stored_constant(value) else self._as_pixels(value)
                for value in values
            ]
            return ops.add(*terms) if kind == "Add" else ops.multiply(*terms)
        if kind == "Gelu":
            return ops.gelu(self._as_pixels(values[0]), node.get_attributes()["approximation_mode"])
        if kind == "FakeQuantize":
            return ops.fake_quantize(self._as_pixels(values[0]), *values[1:], node.get_attributes()["levels"])
        return None

    def _is_rewritten(self, value: Output) -> bool:
        return value.get_node().get_friendly_name() in self._rewritten

    def _as_pixels(self, rows: Output) -> Output:
        name = rows.get_node().get_friendly_name()
        if name not in self._pixels:
            by_token = ops.reshape(rows, np.array([1, 1, -1, _num_channels(rows)]), False)
            self._pixels[name] = ops.transpose(by_token, np.array([0, 3, 1, 2])).output(0)
        return self._pixels[name]

    def _as_rows(self, value: Output) -> Output:
        name = value.get_node().get_friendly_name()
        if name not in self._rows:
            # In the order (0, 2, 3, 1) the CPU plugin would copy the same bytes one number at a time.
            by_token = ops.transpose(self._pixels[name], np.array([3, 1, 0, 2]))
            self._rows[name] = ops.reshape(by_token, np.array([-1, 1, _num_channels(value)]), False).output(0)
        return self._rows[name]


def _num_channels(rows: Output) -> int:
    return rows.get_partial_shape()[-1].get_length()


def _kernel(matmul: Node) -> Output:
    """Return a matmul's INT8 weight (O, I) and its scales (O, 1) as a convolution's kernel (O, I, 1, 1)."""
    outputs, inputs = (size.get_length() for size in matmul.get_input_partial_shape(1))
    integers = ops.convert(over_same_memory(stored_weight(matmul), [outputs, inputs, 1, 1]), "f32")
    return ops.multiply(integers, ops.constant(weight_scales(matmul).reshape(outputs, 1, 1, 1))).output(0)
