"""Proof of INT8: from the IR file, what each matmul's weight is stored in; from the compiled graphs, what it runs in."""

import re
from collections import Counter
from pathlib import Path

import openvino

from gpt2opt.deploy.graphs import activation_quantizer, matmuls, stored_weight
from gpt2opt.deploy.manifest import read_config, read_manifest
from gpt2opt.deploy.runtime import compile_ir
from gpt2opt.report.results import Int8Audit

MATMUL_NAME = re.compile(r"\.(h\.\d+\.(?:attn|mlp)\.c_(?:attn|proj|fc)|lm_head)/aten::(?:linear|addmm)/")


def audit_int8(directory: Path | str, *, must_pass: bool = True) -> Int8Audit:
    """Count what is INT8 in an IR directory: every block matmul and the head, in the file, reading a prompt and decoding.

    A weight must be stored as an integer and stay one in both compiled graphs. An input must be an integer in the graph that reads
    prompts, unless the file has no quantizer for it; which those are is told.

    Args:
        directory: what `quantize_int8` wrote.
        must_pass: raise if any of them is not INT8.

    Raises:
        ValueError: there is no IR in the directory, it is damaged, or it is no GPT-2.
        RuntimeError: a matmul is not INT8, unless `must_pass` is off. The message names each.
    """
    directory = Path(directory)
    weights = read_manifest(directory).weights
    graph = openvino.Core().read_model(str(directory / "openvino_model.xml"))
    stored, float_inputs = {}, []
    for node in matmuls(graph):
        if name := _matmul(node.get_friendly_name()):
            stored[name] = stored_weight(node).get_element_type().get_type_name()
            float_inputs += [] if activation_quantizer(node) else [name]
    constants = Counter()
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant":
            constants[node.get_element_type().get_type_name()] += node.get_byte_size()
    compiled = compile_ir(directory)
    head = _executed(compiled.head)
    reading = head | _executed(compiled.reader)
    # The stepper has to show a head of its own.
    decoding = _executed(compiled.stepper) if compiled.stepper else head | _executed(compiled.writer)
    # How many layers there must be is told by the config, not by the graph: a layer that is missing there has to be missed.
    audit = Int8Audit(weights, stored, reading, decoding, tuple(float_inputs), dict(constants), read_config(directory, "n_layer"))
    if must_pass and not audit.passed:
        raise RuntimeError(f"{len(audit.failures)} of {len(audit.expected)} matmuls are not INT8: {'; '.join(audit.failures)}")
    return audit


def _executed(compiled) -> dict[str, tuple[str, str]]:
    """Return matmul -> (type of its input, type of its weight) in a compiled graph; all types where its parts differ."""
    parts = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        if _fact(node, "layerType") in ("FullyConnected", "MatMul", "Convolution") and (name := _matmul(node.get_friendly_name())):
            # A node that feeds several others lists the type of each output.
            types = [_fact(node.input_value(port).get_node(), "outputPrecisions").split(",")[0] for port in (0, 1)]
            parts.setdefault(name, []).append(types)
    return {name: tuple(" and ".join(sorted(set(types))) for types in zip(*found, strict=True)) for name, found in parts.items()}


def _fact(node, name: str) -> str:
    return node.get_rt_info()[name].astype(str)


def _matmul(friendly_name: str) -> str | None:
    match = MATMUL_NAME.search(friendly_name)
    return match and match[1]
