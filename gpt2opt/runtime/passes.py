"""What is done to a GPT-2 graph in memory, between reading the IR and compiling it; the file stays as it is.

The file holds one graph with activation quantizers, which every OpenVINO runtime loads. Here several are made of it: one that reads
prompts, bound by arithmetic, and one or two that decode, bound by the bytes of the weights. All keep their KV cache in the same blocks
of memory (paged attention, Kwon et al. 2023), so that nothing is handed over between them.
"""

from collections.abc import Iterable

import numpy as np
from openvino import Dimension, Input, Model, Node, Output, PartialShape, Tensor
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation
from openvino.op import Constant

ROWS = "rows"
SEQUENCES = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
"""The inputs that tell attention which tokens of a call follow each other, and where in the cache."""
LAST = "last_"
"""What the names of `SEQUENCES` begin with where they are the last attention's own."""
GELU_FORMS_DIFFER = 4.8e-4
"""The largest difference between GELU by erf and its approximation by tanh (Hendrycks & Gimpel 2016), which GPT-2 uses."""


def paged(graph: Model) -> Model:
    """Let a stateful graph take its KV cache as an input, in blocks.

    The tokens of all sequences of a call lie end to end. Inputs are `input_ids` and `position_ids` (tokens,), `past_lens` (sequences,),
    `subsequence_begins` and `block_indices_begins` (sequences + 1,), `block_indices` (blocks,), `max_context_len` (), `rows` (rows,), the
    tokens whose logits are wanted, and the cache, `key_cache.N` and `value_cache.N`. The output are the logits (rows, 1, V).
    """
    _look_up_integers(graph)
    paged_attention_transformation(graph)
    rows = ops.parameter([-1], np.int64)
    rows.output(0).set_names({ROWS})
    graph.add_parameters([rows])
    _pick_rows(graph, rows)
    # At least one of each: with sizes that may be 0 the CPU plugin finds convolutions' results and their readers unlike, and copies them.
    graph.reshape({name: PartialShape([Dimension(1, -1)]) for name in ("input_ids", "position_ids", ROWS)})
    return graph


def describe_last_attention(graph: Model) -> Model:
    """Let the last attention of a paged graph take `SEQUENCES` of its own, as `last_past_lens` and so on.

    Nothing reads what it finds for tokens whose logits are not wanted. It only has to keep their keys and values, and can be told so.
    """
    last = _last_attention(graph).get_friendly_name()
    for name in SEQUENCES:
        shared = graph.input(name)
        own = ops.parameter(shared.get_partial_shape(), shared.get_element_type())
        own.output(0).set_names({LAST + name})
        graph.add_parameters([own])
        for port in shared.get_target_inputs():
            if port.get_node().get_friendly_name() == last:
                port.replace_source_output(own.output(0))
    return graph


def cut(graph: Model) -> tuple[Model, Model]:
    """Cut a paged graph into its body, whose output are the hidden states (rows, 1, width), and its head, whose input they are."""
    head = next(node for node in matmuls(graph) if is_head(node))
    first = activation_quantizer(head) or head
    hidden = first.input_value(0)
    picked = ops.parameter(hidden.get_partial_shape(), np.float32)
    first.input(0).replace_source_output(picked.output(0))
    return Model([hidden], graph.get_parameters()), Model(graph.get_results(), [picked])


def _last_attention(graph: Model) -> Node:
    return [node for node in graph.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension"][-1]


def _look_up_integers(graph: Model) -> None:
    """Look embeddings up as INT8 and make floats of what was found: the CPU plugin may make them of the whole table, 4 times its bytes."""
    for node in graph.get_ordered_ops():
        table = _stored(node.input_value(0)) if node.get_type_name() == "Gather" else None
        if table and table.get_element_type().get_type_name() == "i8":
            scales, where = node.input_value(0).get_node().input_value(1), node.input_values()[1:]
            found = ops.multiply(ops.convert(ops.gather(table, *where), "f32"), ops.gather(scales, *where))
            for consumer in node.output(0).get_target_inputs():
                consumer.replace_source_output(found.output(0))


def _pick_rows(graph: Model, rows: Node) -> None:
    """Go on with `rows` alone behind the last attention: no later token reads what the last block makes of the others."""
    attention = _last_attention(graph)
    _pick(attention.output(0), attention.output(0).get_target_inputs(), rows)
    node = attention
    while node.get_type_name() != "Add" or any(_stored(value) for value in node.input_values()):
        before, (consumer,) = node, node.output(0).get_target_inputs()
        node = consumer.get_node()
    residual = next(port for port in node.inputs() if port.get_source_output().get_node().get_friendly_name() != before.get_friendly_name())
    _pick(residual.get_source_output(), [residual], rows)
    graph.validate_nodes_and_infer_types()


def _pick(source: Output, consumers: Iterable[Input], rows: Node) -> None:
    picked = ops.gather(source, rows, ops.constant(0, dtype=np.int64))
    for consumer in consumers:
        consumer.replace_source_output(picked.output(0))


def one_step(graph: Model) -> Model:
    """Fix the shapes of a paged graph to one token of one sequence, with an empty sequence beside it; see `token_by_token`.

    The CPU plugin then works no shapes out while it runs. Matmuls that are left in the blocks get their row twice: the plugin sums a
    single row in another order than several, and a quantizer behind it would make more of the difference.
    """
    sizes = {"input_ids": 1, "position_ids": 1, ROWS: 1, "past_lens": 2, "subsequence_begins": 3, "block_indices_begins": 3}
    graph.reshape({name: [size] for name, size in sizes.items()})
    for node in matmuls(graph):
        if is_head(node):
            continue
        consumers, row = node.output(0).get_target_inputs(), node.input_value(0)
        node.input(0).replace_source_output(ops.concat([row, row], 0).output(0))
        first = ops.gather(node, np.array([0]), ops.constant(0, dtype=np.int64))
        for consumer in consumers:
            consumer.replace_source_output(first.output(0))
    return graph


def weight_only(graph: Model) -> Model:
    """Take the activation quantizers out and leave the INT8 weights."""
    for node in matmuls(graph):
        if quantizer := activation_quantizer(node):
            node.input(0).replace_source_output(quantizer.input_value(0))
    graph.validate_nodes_and_infer_types()
    return graph


def as_convolutions(graph: Model) -> Model:
    """Write every matmul with a quantized input as a 1 × 1 convolution over the tokens: the same sums by another kernel.

    For CPUs without VNNI or AMX. There the CPU plugin multiplies INT8 matrices no faster than FP32 ones, and its INT8 convolution is
    much faster. Whatever works on each token by itself between two of them stays in the convolution's layout: biases, GELU, residual
    sums and quantizers then cost no pass of their own, and nothing is transposed on the way.
    """
    _center_embeddings(graph)
    layout = _ConvolutionLayout()
    for node in graph.get_ordered_ops():
        layout.rewrite(node)
    graph.validate_nodes_and_infer_types()
    return graph


def _center_embeddings(graph: Model) -> None:
    """Take the mean over the channels out of what goes into the first block.

    With the projections of `ir.linearize` no block adds one again, so that all further LayerNorms may do without (SliceGPT, Ashkboos
    et al. 2024, section 3.2).
    """
    embedded = next(node for node in graph.get_ordered_ops() if node.get_type_name() == "MVN").input_value(0)
    consumers = embedded.get_target_inputs()
    centered = ops.mvn(embedded, np.array([-1]), normalize_variance=False, eps=1e-5, eps_mode="INSIDE_SQRT")
    for consumer in consumers:
        consumer.replace_source_output(centered.output(0))


def multiply_parts(graph: Model) -> Model:
    """Write a matmul whose result is split, into queries, keys and values, as one for each part, where its input is quantized.

    For many tokens at once: the weight's rows are split for nothing, the result by a pass over it.
    """
    for split in graph.get_ordered_ops():
        total = split.input_value(0).get_node() if split.get_type_name() == "VariadicSplit" else None
        matmul = total.input_value(0).get_node() if total and total.get_type_name() == "Add" else None
        if not matmul or not stored_weight(matmul) or not activation_quantizer(matmul):
            continue
        weight, scales, bias, first = stored_weight(matmul), _scales(matmul), _data(total.input_value(1)), 0
        for part in split.outputs():
            rows = slice(first, first + _channels(part))
            first = rows.stop
            integers = _reshaped(weight, [_channels(part), weight.get_output_shape(0)[1]], rows)
            decompressed = ops.multiply(ops.convert(integers, "f32"), ops.constant(scales[rows]))
            product = ops.matmul(matmul.input_value(0), decompressed, False, True)
            biased = ops.add(product, ops.constant(bias[..., rows]))
            for node, whole in ((product, matmul), (biased, total)):  # the audit looks for one of these names
                node.set_friendly_name(f"{whole.get_friendly_name()}.{part.get_index()}")
            for consumer in part.get_target_inputs():
                consumer.replace_source_output(biased.output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def gelu_by_erf(graph: Model) -> Model:
    """Compute GELU by erf instead of tanh where what follows rounds the difference away.

    For CPUs without AVX-512, on which the CPU plugin's tanh is much slower than its erf.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Gelu" or node.get_attributes()["approximation_mode"] != "TANH":
            continue
        consumers = node.output(0).get_target_inputs()
        if all(_step(consumer.get_node()) > 10 * GELU_FORMS_DIFFER for consumer in consumers):
            erf = ops.gelu(node.input_value(0), "ERF")
            erf.set_friendly_name(node.get_friendly_name())
            for consumer in consumers:
                consumer.replace_source_output(erf.output(0))
    return graph


def group_scales(graph: Model) -> None:
    """Give weights with several scales a row the shape in which the CPU plugin decompresses them: (O, groups, inputs of a group)."""
    for node in matmuls(graph):
        reshape = node.input_value(1).get_node()
        if reshape.get_type_name() != "Reshape":
            continue
        outputs, inputs = (size.get_length() for size in node.get_input_partial_shape(1))
        multiply = reshape.input_value(0).get_node()
        scale = multiply.input_value(1).get_node().get_data().reshape(outputs, -1, 1)
        integers = _reshaped(stored_weight(node), [outputs, scale.shape[1], inputs // scale.shape[1]])
        decompressed = ops.multiply(ops.convert(integers, "f32"), ops.constant(scale))
        node.input(1).replace_source_output(ops.reshape(decompressed, np.array([outputs, inputs]), False).output(0))
    graph.validate_nodes_and_infer_types()


def halve_positions(graph: Model) -> None:
    """Store the position embeddings, the largest table left in FP32, as FP16."""
    for node in graph.get_ordered_ops():
        table = node.input_value(0).get_node() if node.get_type_name() == "Gather" else None
        if table and table.get_type_name() == "Constant" and len(table.get_output_shape(0)) == 2 and "wpe" in node.get_friendly_name():
            half = ops.convert(ops.constant(table.get_data().astype(np.float16)), "f32")
            node.input(0).replace_source_output(half.output(0))
    graph.validate_nodes_and_infer_types()


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
    """Return the constant that a matmul's weight is stored in, seen through decompression and changes of layout."""
    return _stored(matmul.input_value(1))


def _stored(value: Output) -> Node | None:
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose", "FakeQuantize"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _kernel(matmul: Node) -> Output:
    """Return a matmul's INT8 weight (O, I) and its scales (O, 1) as a convolution's kernel (O, I, 1, 1)."""
    outputs, inputs = (size.get_length() for size in matmul.get_input_partial_shape(1))
    integers = ops.convert(_reshaped(stored_weight(matmul), [outputs, inputs, 1, 1]), "f32")
    return ops.multiply(integers, ops.constant(_scales(matmul).reshape(outputs, 1, 1, 1))).output(0)


def _scales(matmul: Node) -> np.ndarray:
    return _data(matmul.input_value(1).get_node().input_value(1))


def _reshaped(constant: Node, shape: list[int], rows: slice = slice(None)) -> Constant:
    """Return a constant of another shape, or of some rows, over the same memory: a Reshape would be folded into a copy of the weights.

    The memory is the file's. It lives as long as any constant that was read from it, and those of the embeddings stay in every graph.
    """
    return Constant(Tensor(constant.data[rows], shape, constant.get_element_type()))


class _ConvolutionLayout:
    """The tensors of a graph that have been rewritten to (1, C, 1, tokens), by the name of the node they come from.

    What is needed in the other layout, there or as rows (tokens, 1, C), is transposed once, when it is first asked for.
    """

    def __init__(self):
        self._pixels: dict[str, Output] = {}
        self._rows: dict[str, Output] = {}
        self._rewritten: set[str] = set()

    def rewrite(self, node: Node) -> None:
        """Rewrite a node if the layout suits it; if not, give it the rows of what has been rewritten before it."""
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
            return _layer_norm(pixels, node.get_attributes()["eps"]) if _written_by_convolution(pixels) else None
        if kind in ("Add", "Multiply"):
            terms = [_along_channels(value) if _stored(value) else self._as_pixels(value) for value in values]
            return ops.add(*terms) if kind == "Add" else ops.multiply(*terms)
        if kind == "Gelu":
            return ops.gelu(self._as_pixels(values[0]), node.get_attributes()["approximation_mode"])
        if kind == "FakeQuantize":
            source, low, high = _before_gain_and_shift(self._as_pixels(values[0]), *map(_data, values[1:3]))
            ranges = [ops.constant(limit.astype(np.float32)) for limit in (low, high)]
            return ops.fake_quantize(source, *ranges, *values[3:], node.get_attributes()["levels"])
        return None

    def _is_rewritten(self, value: Output) -> bool:
        return value.get_node().get_friendly_name() in self._rewritten

    def _as_pixels(self, rows: Output) -> Output:
        name, channels = rows.get_node().get_friendly_name(), _channels(rows)
        if name not in self._pixels:
            self._pixels[name] = ops.transpose(ops.reshape(rows, np.array([1, 1, -1, channels]), False), np.array([0, 3, 1, 2])).output(0)
        return self._pixels[name]

    def _as_rows(self, value: Output) -> Output:
        name = value.get_node().get_friendly_name()
        if name not in self._rows:
            # In the order (0, 2, 3, 1) the CPU plugin would copy the same bytes one number at a time.
            rows = ops.reshape(ops.transpose(self._pixels[name], np.array([3, 1, 0, 2])), np.array([-1, 1, _channels(value)]), False)
            self._rows[name] = rows.output(0)
        return self._rows[name]


def _channels(rows: Output) -> int:
    return rows.get_partial_shape()[-1].get_length()


def _written_by_convolution(total: Output) -> bool:
    """Return whether a convolution writes a residual sum, its bias and the other term included, and so in its own layout.

    Another sum may be laid out as the rows it came from, and be normalized otherwise for one token than for several.
    """
    terms = [value.get_node() for value in total.get_node().input_values()]
    return any("Convolution" in (term.get_type_name(), *(v.get_node().get_type_name() for v in term.input_values())) for term in terms)


def _along_channels(value: Output) -> Node:
    """Return a constant of one value for each channel, or of one for all, for (1, C, 1, tokens)."""
    return ops.constant(_data(value).reshape(1, -1, 1, 1))


def _data(value: Output) -> np.ndarray:
    return value.get_node().get_data()


def _before_gain_and_shift(value: Output, low: np.ndarray, high: np.ndarray) -> tuple[Output, np.ndarray, np.ndarray]:
    """Return where a quantizer of [low, high] may read instead, before gains and shifts of each channel, and its ranges there.

    OpenVINO would do the same, and with fixed shapes in another order than without: the bits of one graph would not be those of the other.
    """
    node = value.get_node()
    if node.get_type_name() not in ("Add", "Multiply") or not _stored(node.input_value(1)):
        return value, low, high
    constant = _data(node.input_value(1)).astype(np.float64)
    if node.get_type_name() == "Add":
        return _before_gain_and_shift(node.input_value(0), low - constant, high - constant)
    if (constant > 0).all():
        return _before_gain_and_shift(node.input_value(0), low / constant, high / constant)
    return value, low, high


def _layer_norm(pixels: Output, eps: float) -> Node:
    """Normalize (1, C, 1, tokens) over the channels, by operations that the CPU plugin has for this layout: MVN is not among them.

    Its mean over the channels is 0, see `_center_embeddings`, so that it only has to be divided by its L2 norm ÷ √C.
    """
    channels = pixels.get_partial_shape()[1].get_length()
    normal = ops.normalize_l2(pixels, np.array([1]), eps * channels, "add")
    return ops.multiply(normal, np.float32(channels**0.5))


def _step(node: Node) -> float:
    """Return the width of a quantizer's steps; 0 for any other node."""
    if node.get_type_name() != "FakeQuantize":
        return 0.0
    lowest, highest = (_data(node.input_value(port)) for port in (3, 4))
    return float((highest - lowest).min()) / (node.get_attributes()["levels"] - 1)
