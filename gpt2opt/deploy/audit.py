"""Proof of INT8: from the IR file, what each matmul's weight is stored in; from the compiled model, what it runs in."""

import json
import re
from collections import Counter
from pathlib import Path

from gpt2opt.deploy.runtime import compile_ir, ir_file
from gpt2opt.report.results import Int8Audit

# The whole name, not its start: a fused node also lists the quantizer of its consumer's input, under the consumer's name.
MATMUL_NAME = re.compile(r"\.(h\.\d+\.(?:attn|mlp)\.c_(?:attn|proj|fc)|lm_head)/aten::(?:linear|addmm)/MatMul(?:_original)?$")
PASS_THROUGH = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose", "FakeQuantize")
"""What may stand between a stored weight and its matmul: decompression, and a change of layout."""


def audit_int8(directory: Path | str, *, must_pass: bool = True) -> Int8Audit:
    """Count what is INT8 in an IR directory: every block matmul and the head, in the file and at run time.

    Args:
        directory: what `quantize_int8` wrote.
        must_pass: raise if any of them is not INT8.

    Raises:
        ValueError: there is no IR in the directory, it is damaged, or it is no GPT-2.
        RuntimeError: a matmul is not INT8, unless `must_pass` is off. The message names each.
    """
    compiled = compile_ir(directory)
    in_file, bytes_by_type = _stored(directory)
    audit = Int8Audit(in_file, _executed(compiled), bytes_by_type, _num_layers(Path(directory)))
    if must_pass and not audit.passed:
        raise RuntimeError(f"{len(audit.failures)} of {len(audit.expected)} matmuls are not INT8: {'; '.join(audit.failures)}")
    return audit


def _num_layers(directory: Path) -> int:
    """Read how many layers there must be from the config, not from the graph: a layer that is missing there has to be missed."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return int(config["n_layer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no config.json of a GPT-2 in {directory}; name a directory that stage 4 or export_ir wrote") from error


def _stored(directory: Path | str) -> tuple[dict[str, str], dict[str, int]]:
    import openvino

    graph = openvino.Core().read_model(str(ir_file(directory)))
    in_file, bytes_by_type = {}, Counter()
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant":
            bytes_by_type[node.get_element_type().get_type_name()] += node.get_byte_size()
        elif node.get_type_name() == "MatMul" and (name := _matmul(node.get_friendly_name())):
            in_file[name] = _stored_type(node.input_value(1).get_node())
    return in_file, dict(bytes_by_type)


def _stored_type(node) -> str:
    while node.get_type_name() in PASS_THROUGH:
        node = node.input_value(0).get_node()
    return node.get_element_type().get_type_name() if node.get_type_name() == "Constant" else "not a constant"


def _executed(compiled) -> dict[str, str]:
    """Return matmul -> run-time precision, from the execution graph; a fused node lists the names of what it was made of."""
    executed = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str) in ("FullyConnected", "MatMul"):
            for original in facts["originalLayersNames"].astype(str).split(","):
                if name := _matmul(original):
                    executed[name] = facts["runtimePrecision"].astype(str)
    return executed


def _matmul(friendly_name: str) -> str | None:
    match = MATMUL_NAME.search(friendly_name)
    return match and match[1]
