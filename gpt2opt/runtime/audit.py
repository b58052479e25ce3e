"""Proof of INT8: the type of each matmul's weight in the IR file, and the types that it multiplies in the compiled graphs."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import openvino

from gpt2opt.runtime.compile import compile_ir
from gpt2opt.runtime.graph import activation_quantizer, matmuls, stored_weight
from gpt2opt.runtime.manifest import read_config, read_manifest

INT8_TYPES = ("i8", "u8")
BLOCK_MATMULS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MATMUL_NAME = re.compile(r"\.(h\.\d+\.(?:attn|mlp)\.c_(?:attn|proj|fc)|lm_head)/aten::(?:linear|addmm)/")


@dataclass(frozen=True)
class Int8Audit:
    """What is INT8 in an IR file and in the graphs compiled from it, for each matmul by its name in the model."""

    weights: str
    """The type that the weights of the blocks have to be stored in: `i8` or `i4`, or `f32` if nothing was quantized."""
    in_file: dict[str, str]
    """Matmul -> type of its stored weight."""
    prefill: dict[str, tuple[str, str]]
    """Matmul -> types of its input and of its weight in the compiled graph that reads prompts."""
    decode: dict[str, tuple[str, str]]
    """The same in the compiled graph that decodes one sequence."""
    float_inputs: tuple[str, ...]
    """Matmuls whose input the file does not quantize."""
    bytes_by_type: dict[str, int]
    """Type -> bytes of constants in the file."""
    num_layers: int

    @property
    def failures(self) -> list[str]:
        """Return one line for each matmul that is missing, or that is not INT8 although it has to be."""
        return [f"{name}: {problem}" for name in self.expected if (problem := self._problem(name))]

    def _problem(self, name: str) -> str | None:
        integers = ("i4", "u4") if self.weights == "i4" and name != "lm_head" else INT8_TYPES
        if self.in_file.get(name) not in integers:
            return f"weight {self.in_file.get(name, 'not found')} in the file"
        for graph, executed in (("prefill", self.prefill.get(name)), ("decode", self.decode.get(name))):
            if executed is None:
                return f"not found in the {graph} graph"
            if executed[1] not in integers:
                return f"weight {executed[1]} in the {graph} graph"
        if name not in self.float_inputs and self.prefill[name][0] not in INT8_TYPES:
            return f"input {self.prefill[name][0]} in the prefill graph"
        return None

    @property
    def expected(self) -> list[str]:
        """Return the names of all block matmuls, 4 per layer, and of the head."""
        blocks = [f"h.{layer}.{part}" for layer in range(self.num_layers) for part in BLOCK_MATMULS]
        return [*blocks, "lm_head"]

    @property
    def int8_share(self) -> float:
        """Return the share of the file's constant bytes that are integers of 8 bits or less."""
        return sum(self.bytes_by_type.get(name, 0) for name in (*INT8_TYPES, "i4", "u4")) / sum(self.bytes_by_type.values())

    @property
    def passed(self) -> bool:
        return not self.failures


def audit_int8(directory: Path | str, *, must_pass: bool = True) -> Int8Audit:
    """Count what is INT8 in an IR directory: every block matmul and the head, in the file and in both compiled graphs.

    A weight must be stored as an integer and stay one in both compiled graphs. An input must be an integer in the prefill graph, unless
    the file has no quantizer for it; `Int8Audit.float_inputs` lists those.

    Args:
        directory: what `quantize_int8` wrote.
        must_pass: raise if one of them is not INT8.

    Raises:
        ValueError: there is no IR in the directory, it is damaged, or it is no GPT-2.
        RuntimeError: a matmul is not INT8 and `must_pass` is set. The message names each.
    """
    directory = Path(directory)
    weights = read_manifest(directory).weights
    graph = openvino.Core().read_model(str(directory / "openvino_model.xml"))
    stored, float_inputs = {}, []
    for node in matmuls(graph):
        weight, name = stored_weight(node), _matmul(node.get_friendly_name())
        if weight and name:
            stored[name] = weight.get_element_type().get_type_name()
            float_inputs += [] if activation_quantizer(node) else [name]
    constants: Counter[str] = Counter()
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant":
            constants[node.get_element_type().get_type_name()] += node.get_byte_size()
    compiled = compile_ir(directory)
    head = executed_types(compiled.head, _matmul)
    prefill = head | executed_types(compiled.prefill, _matmul)
    # The single-step graph needs a head of its own: the shared one must not stand in for it.
    decode = executed_types(compiled.single_step, _matmul) if compiled.single_step else head | executed_types(compiled.decode, _matmul)
    # The config tells how many layers there must be, not the graph: else a layer that the graph lacks would go unnoticed.
    audit = Int8Audit(weights, stored, prefill, decode, tuple(float_inputs), dict(constants), read_config(directory, "n_layer"))
    if must_pass and not audit.passed:
        raise RuntimeError(f"{len(audit.failures)} of {len(audit.expected)} matmuls are not INT8: {'; '.join(audit.failures)}")
    return audit


def executed_types(compiled: openvino.CompiledModel, name_of: Callable[[str], str | None]) -> dict[str, tuple[str, str]]:
    """Return matmul -> (type of its input, type of its weight) in a compiled graph; all types if its parts differ.

    name_of: the name of a node in the graph -> that of the matmul which it is a part of; None: it is none that counts.
    """
    parts: dict[str, list[list[str]]] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        if _fact(node, "layerType") in ("FullyConnected", "MatMul", "Convolution") and (name := name_of(node.get_friendly_name())):
            # A node that feeds several others lists the type of each output.
            types = [_fact(node.input_value(port).get_node(), "outputPrecisions").split(",")[0] for port in (0, 1)]
            parts.setdefault(name, []).append(types)
    return {name: (_one_or_all(pair[0] for pair in found), _one_or_all(pair[1] for pair in found)) for name, found in parts.items()}


def _one_or_all(types: Iterable[str]) -> str:
    return " and ".join(sorted(set(types)))


def _fact(node: openvino.Node, name: str) -> str:
    return node.get_rt_info()[name].astype(str)


def _matmul(friendly_name: str) -> str | None:
    match = MATMUL_NAME.search(friendly_name)
    return match and match[1]
