"""Graph passes for CPUs without VNNI or AMX: INT8 matmuls as 1 × 1 convolutions, whose INT8 kernel is much faster there.

On such a CPU the plugin multiplies INT8 matrices no faster than FP32 ones.
"""

import numpy as np
from openvino import Model, Node, Output
from openvino import opset13 as ops

from gpt2opt.runtime.graph import (
    activation_quantizer,
    constant_data,
    num_channels,
    over_same_memory,
    stored_constant,
    stored_weight,
    weight_scales,
)


def as_convolutions(graph: Model) -> Model:
    """Write every matmul with a quantized input as a 1 × 1 convolution over the tokens: the same sums by another kernel.

    Operations on single tokens between two convolutions stay in the convolution's layout: biases, GELU, residual sums and quantizers
    then cost no pass of their own, and nothing is transposed in between. LayerNorms are computed on rows.
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
        name, channels = rows.get_node().get_friendly_name(), num_channels(rows)
        if name not in self._pixels:
            self._pixels[name] = ops.transpose(ops.reshape(rows, np.array([1, 1, -1, channels]), False), np.array([0, 3, 1, 2])).output(0)
        return self._pixels[name]

    def _as_rows(self, value: Output) -> Output:
        name = value.get_node().get_friendly_name()
        if name not in self._rows:
            # In the order (0, 2, 3, 1) the CPU plugin would copy the same bytes one number at a time.
            rows = ops.reshape(ops.transpose(self._pixels[name], np.array([3, 1, 0, 2])), np.array([-1, 1, num_channels(value)]), False)
            self._rows[name] = rows.output(0)
        return self._rows[name]


def _kernel(matmul: Node) -> Output:
    """Return a matmul's INT8 weight (O, I) and its scales (O, 1) as a convolution's kernel (O, I, 1, 1)."""
    outputs, inputs = (size.get_length() for size in matmul.get_input_partial_shape(1))
    integers = ops.convert(over_same_memory(stored_weight(matmul), [outputs, inputs, 1, 1]), "f32")
    return ops.multiply(integers, ops.constant(weight_scales(matmul).reshape(outputs, 1, 1, 1))).output(0)
