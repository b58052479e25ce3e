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


def multiply_parts(graph: Model) -> Model:
    """Compute queries, keys and values by a matmul each instead of splitting the result of one, if its input is quantized.

    Splitting the rows of a weight costs nothing; splitting the result for many tokens costs a pass over it.
    """
    for split in graph.get_ordered_ops():
        total = split.input_value(0).get_node() if split.get_type_name() == "VariadicSplit" else None
        if total is None or total.get_type_name() != "Add":
            continue
        matmul = total.input_value(0).get_node()
        weight = stored_weight(matmul)
        if weight is None or not activation_quantizer(matmul):
            continue
        scales, bias, first = weight_scales(matmul), constant_data(total.input_value(1)), 0
        for part in split.outputs():
            rows = slice(first, first + num_channels(part))
            first = rows.stop
            integers = over_same_memory(weight, [num_channels(part), weight.get_output_shape(0)[1]], rows)
            decompressed = ops.multiply(ops.convert(integers, "f32"), ops.constant(scales[rows]))
            product = ops.matmul(matmul.input_value(0), decompressed, False, True)
            biased = ops.add(product, ops.constant(bias[..., rows]))
            for node, whole in ((product, matmul), (biased, total)):  # the audit looks for one of these names
                node.set_friendly_name(f"{whole.get_friendly_name()}.{part.get_index()}")
            for consumer in part.get_target_inputs():
                consumer.replace_source_output(biased.output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def center_embeddings(graph: Model) -> Model:
    """Subtract the mean over the channels from the input of the first block, so that `as_convolutions` writes LayerNorms without it.

    This relies on the export's promise of a centered residual stream: no block may add a mean again, see `linearize` (SliceGPT, Ashkboos
    et al. 2024, section 3.2). Without the promise the logits would be wrong.
    """
    embedded = next(node for node in graph.get_ordered_ops() if node.get_type_name() == "MVN").input_value(0)
    consumers = embedded.get_target_inputs()
    centered = ops.mvn(embedded, np.array([-1]), normalize_variance=False, eps=1e-5, eps_mode="INSIDE_SQRT")
    for consumer in consumers:
        consumer.replace_source_output(centered.output(0))
    return graph


def _has_centered_embeddings(graph: Model) -> bool:
    first = next(node for node in graph.get_ordered_ops() if node.get_type_name() == "MVN")
    return not first.get_attributes()["normalize_variance"]


def as_convolutions(graph: Model) -> Model:
    """Write every matmul with a quantized input as a 1 × 1 convolution over the tokens: the same sums by another kernel.

    Operations on single tokens between two convolutions stay in the convolution's layout: biases, GELU, residual sums and quantizers
    then cost no pass of their own, and nothing is transposed in between. LayerNorms stay in it too if their input has no mean over the
    channels, see `center_embeddings`; otherwise they are computed on rows.
    """
    layout = _ConvolutionLayout(_has_centered_embeddings(graph))
    for node in graph.get_ordered_ops():
        layout.rewrite(node)
    graph.validate_nodes_and_infer_types()
    return graph


class _ConvolutionLayout:
    """The tensors of a graph that have been rewritten to (1, C, 1, tokens), by the name of the node they come from.

    A tensor that is needed in the other layout, there or as rows (tokens, 1, C), is transposed once, when it is first asked for.
    """

    def __init__(self, residual_is_centered: bool):
        self._residual_is_centered = residual_is_centered
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
        if kind == "MVN":
            pixels = self._as_pixels(values[0])
            in_place = self._residual_is_centered and _written_by_convolution(pixels)
            return _layer_norm(pixels, node.get_attributes()["eps"]) if in_place else None
        if kind in ("Add", "Multiply"):
            terms = [_along_channels(value) if stored_constant(value) else self._as_pixels(value) for value in values]
            return ops.add(*terms) if kind == "Add" else ops.multiply(*terms)
        if kind == "Gelu":
            return ops.gelu(self._as_pixels(values[0]), node.get_attributes()["approximation_mode"])
        if kind == "FakeQuantize":
            source, low, high = _before_gain_and_shift(self._as_pixels(values[0]), *map(constant_data, values[1:3]))
            ranges = [ops.constant(limit.astype(np.float32)) for limit in (low, high)]
            return ops.fake_quantize(source, *ranges, *values[3:], node.get_attributes()["levels"])
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


def _written_by_convolution(total: Output) -> bool:
    """Return whether a convolution writes a residual sum, with its bias and the other term, and therefore in its own layout.

    Another sum may have the layout of the rows that it came from, and the plugin would normalize one token differently from several.
    """
    terms = [value.get_node() for value in total.get_node().input_values()]
    return any("Convolution" in (term.get_type_name(), *(v.get_node().get_type_name() for v in term.input_values())) for term in terms)


def _along_channels(value: Output) -> Node:
    """Return a constant of one value for each channel, or of one for all, for (1, C, 1, tokens)."""
    return ops.constant(constant_data(value).reshape(1, -1, 1, 1))


def _before_gain_and_shift(value: Output, low: np.ndarray, high: np.ndarray) -> tuple[Output, np.ndarray, np.ndarray]:
    """Return the value before the gains and shifts of channels that a quantizer of [low, high] can read instead, and its ranges there.

    OpenVINO would do the same, but in another order for fixed shapes than for dynamic ones, and the two graphs would give other bits.
    """
    node = value.get_node()
    if node.get_type_name() not in ("Add", "Multiply") or not stored_constant(node.input_value(1)):
        return value, low, high
    constant = constant_data(node.input_value(1)).astype(np.float64)
    if node.get_type_name() == "Add":
        return _before_gain_and_shift(node.input_value(0), low - constant, high - constant)
    if (constant > 0).all():
        return _before_gain_and_shift(node.input_value(0), low / constant, high / constant)
    return value, low, high


def _layer_norm(pixels: Output, eps: float) -> Node:
    """Normalize (1, C, 1, tokens) over the channels, by operations that the CPU plugin has for this layout; it has no MVN there.

    The mean over the channels is 0, see `center_embeddings`, so that dividing by the L2 norm ÷ √C is enough.
    """
    channels = pixels.get_partial_shape()[1].get_length()
    normal = ops.normalize_l2(pixels, np.array([1]), eps * channels, "add")
    return ops.multiply(normal, np.float32(channels**0.5))
