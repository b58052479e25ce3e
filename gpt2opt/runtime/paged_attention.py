"""Graph passes for paged attention (Kwon et al. 2023): the KV cache becomes an input, in blocks that all graphs of a model share."""

import numpy as np
from openvino import Model
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from gpt2opt.runtime.graph import stored_constant

ROWS = "rows"


def page_kv_cache(graph: Model) -> Model:
    """Turn the state of a stateful graph into inputs: its KV cache, in blocks.

    The tokens of all sequences of a call are joined. Inputs are those of `kv_cache.graph_inputs`, apart from `rows`, and the cache,
    `key_cache.N` and `value_cache.N`. The output are the logits (tokens, 1, V).
    """
    paged_attention_transformation(graph)
    return graph


def pick_rows(graph: Model) -> Model:
    """Add an input `rows` (rows,), the tokens whose logits are wanted, and compute nothing else behind the last attention.

    No later token reads what the last block computes for the others there. The output becomes the logits (rows, 1, V).
    """
    rows = ops.parameter([-1], np.int64)
    rows.output(0).set_names({ROWS})
    graph.add_parameters([rows])
    attention = node = [each for each in graph.get_ordered_ops() if each.get_type_name() == "PagedAttentionExtension"][-1]
    while node.get_type_name() != "Add" or any(stored_constant(value) for value in node.input_values()):
        before, (consumer,) = node, node.output(0).get_target_inputs()
        node = consumer.get_node()
    residual = next(port for port in node.inputs() if port.get_source_output().get_node().get_friendly_name() != before.get_friendly_name())
    for source, consumers in ((attention.output(0), attention.output(0).get_target_inputs()), (residual.get_source_output(), [residual])):
        picked = ops.gather(source, rows, ops.constant(0, dtype=np.int64))
        for consumer in consumers:
            consumer.replace_source_output(picked.output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def cut(graph: Model) -> tuple[Model, Model]:
    """Cut a paged graph before its last norm: into its body, which returns (rows, 1, width), and its head, from these to the logits."""
    norm = [node for node in graph.get_ordered_ops() if node.get_type_name() == "MVN"][-1]
    left = norm.input_value(0)
    picked = ops.parameter(left.get_partial_shape(), np.float32)
    norm.input(0).replace_source_output(picked.output(0))
    return Model([left], graph.get_parameters()), Model(graph.get_results(), [picked])
