"""What is changed in the exported graph before the file is written: passes on the file, for every runtime that loads it."""

import numpy as np
from openvino import Model
from openvino import opset13 as ops

from gpt2opt.runtime.graph import matmuls, over_same_memory, stored_weight


def group_scales(graph: Model) -> None:
    """Store weights with several scales per row as (O, groups, inputs of a group), the shape in which the CPU plugin decompresses them."""
    for node in matmuls(graph):
        reshape = node.input_value(1).get_node()
        if reshape.get_type_name() != "Reshape":
            continue
        outputs, inputs = (size.get_length() for size in node.get_input_partial_shape(1))
        multiply = reshape.input_value(0).get_node()
        scale = multiply.input_value(1).get_node().get_data().reshape(outputs, -1, 1)
        integers = over_same_memory(stored_weight(node), [outputs, scale.shape[1], inputs // scale.shape[1]])
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
