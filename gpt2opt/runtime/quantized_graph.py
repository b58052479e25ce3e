"""Graph passes for integer weights and quantized inputs."""

from openvino import Model
from openvino import opset13 as ops

from gpt2opt.runtime.graph import activation_quantizer, matmuls, quantizer_step, stored_constant

GELU_FORMS_DIFFER = 4.8e-4
"""The largest difference between GELU by erf and its approximation by tanh (Hendrycks & Gimpel 2016), which GPT-2 uses."""


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
