"""Proof of INT8: the type of each matmul's weight in the IR file, and the types that are multiplied when it runs."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino

from gpt2opt.runtime.compile import compile_ir
from gpt2opt.runtime.decode_step import load_step
from gpt2opt.runtime.graph import activation_quantizer, matmuls, stored_weight
from gpt2opt.runtime.ir_weights import PARTS
from gpt2opt.runtime.manifest import IR_NAME, read_config, read_manifest

INT8_TYPES, INT4_TYPES = ("i8", "u8"), ("i4", "u4")
STORED = {"int8": "i8", "float32": "f32"}
"""Types of numpy's arrays, by the names that OpenVINO has for them."""
MATMUL_NAME = re.compile(r"\.(h\.\d+\.(?:attn|mlp)\.c_(?:attn|proj|fc)|lm_head)/aten::(?:linear|addmm)/")


@dataclass(frozen=True)
class Int8Audit:
    """What is INT8 in an IR file, in the graph compiled from it and in the decode step, for each matmul by its name in the model."""

    weights: str  # the type that those of the blocks have to be stored in: `i8` or `i4`, or `f32` if nothing was quantized
    in_file: dict[str, str]  # matmul -> type of its stored weight
    prefill: dict[str, tuple[str, str]]  # matmul -> types of its input and of its weight in the compiled graph that reads prompts
    decode: dict[str, tuple[str, str]]  # the same in what decodes: our decode step, or else the same graph
    float_inputs: tuple[str, ...]  # matmuls whose input the file does not quantize
    bytes_by_type: dict[str, int]  # type -> bytes of constants in the file
    num_layers: int

    @property
    def failures(self) -> list[str]:
        """Return one line for each matmul that is missing, or that is not INT8 although it has to be."""
        return [f"{name}: {problem}" for name in self.expected if (problem := self._problem(name))] + [
            f"{name}: weight {types[1]} in the prefill graph, and it is none of the model's matmuls"
            for name, types in self.prefill.items()
            if name not in self.expected and types[1] not in (*INT8_TYPES, *INT4_TYPES)
        ]

    def _problem(self, name: str) -> str | None:
        integers = INT4_TYPES if self.weights == "i4" and name != "lm_head" else INT8_TYPES
        if self.in_file.get(name) not in integers:
            return f"weight {self.in_file.get(name, 'not found')} in the file"
        for which, found in (("prefill graph", self.prefill), ("decode step", self.decode)):
            if name not in found:
                return f"not found in the {which}"
            if found[name][1] not in integers:
                return f"weight {found[name][1]} in the {which}"
        if name not in self.float_inputs and self.prefill[name][0] not in INT8_TYPES:
            return f"input {self.prefill[name][0]} in the prefill graph"
        return None

    @property
    def expected(self) -> list[str]:
        """Return the names of all block matmuls, 4 per layer, and of the head."""
        return [*(f"h.{layer}.{part}" for layer in range(self.num_layers) for part in PARTS), "lm_head"]

    @property
    def int8_share(self) -> float:
        """Return the share of the file's constant bytes that are integers of 8 bits or less."""
        return sum(self.bytes_by_type.get(name, 0) for name in (*INT8_TYPES, *INT4_TYPES)) / sum(self.bytes_by_type.values())

    @property
    def passed(self) -> bool:
        return not self.failures


def audit_int8(directory: Path | str, *, must_pass: bool = True) -> Int8Audit:
    """Count what is INT8 in an IR directory: every block matmul and the head, in the file, in the compiled graph and in the decode step.

    A weight must be stored as an integer and stay one in what reads prompts and in what decodes. An input must be an integer in the prefill
    graph, unless the file has no quantizer for it; `Int8Audit.float_inputs` lists those.

    Raises:
        ValueError: there is no IR in the directory, it is damaged, or it is no GPT-2.
        RuntimeError: a matmul is not INT8 and `must_pass` is set. The message names each.
    """
    weights = read_manifest(directory).weights
    graph = openvino.Core().read_model(Path(directory, IR_NAME))
    stored, shapes, float_inputs = {}, {}, []
    for node in matmuls(graph):
        if name := _matmul(node.get_friendly_name()):
            weight: Any = stored_weight(node)  # which every one of `matmuls` has
            stored[name], shapes[name] = weight.get_element_type().get_type_name(), tuple(weight.get_output_shape(0))
            float_inputs += [] if activation_quantizer(node) else [name]
    constants: Counter[str] = Counter()
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant":
            constants[node.get_element_type().get_type_name()] += node.get_byte_size()
    compiled, body = compile_ir(directory), {name: shape for name, shape in shapes.items() if name != "lm_head"}
    head = executed_types(compiled.compile_head(), _matmul, {name: shape for name, shape in shapes.items() if name == "lm_head"})
    prefill = head | executed_types(compiled.prefill, _matmul, body)
    step = load_step(directory, compiled.kv_cache, read_config(directory, "n_positions"))
    # The types in its own buffer, and its float32 inputs. Without a step, the graph that reads prompts decodes too.
    decode = {name: ("f32", STORED[weight.dtype.name]) for name, weight in step.stored.items()} if step else prefill
    # The config says how many layers there must be, not the graph: otherwise a layer that the graph lacks would go unnoticed.
    audit = Int8Audit(weights, stored, prefill, decode, tuple(float_inputs), dict(constants), read_config(directory, "n_layer"))
    if must_pass and not audit.passed:
        raise RuntimeError(f"{len(audit.failures)} of {len(audit.expected)} matmuls are not INT8: {'; '.join(audit.failures)}")
    return audit


def executed_types(
    compiled: openvino.CompiledModel, name_of: Callable[[str], str | None], weights: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[str, str]]:
    """Return matmul -> (type of its input, type of its weight) in a compiled graph.

    The plugin may give a matmul the name of an operation that it was merged with. Such matmuls are known by the sizes of their weights and
    by their order, if these fit the matmuls that no name was found for; otherwise each is returned under the plugin's name.

    name_of: the name of a node in the graph -> that of the matmul which it is; None: it is none that counts. weights: the matmuls that the
    graph must have, in the order they run -> the shape (O, …) of the weight. Without it, what has no name does not count.
    """
    executed: dict[str, tuple[str, str]] = {}
    unnamed: list[tuple[str, tuple[int, int], tuple[str, str]]] = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        if _fact(node, "layerType") not in ("FullyConnected", "MatMul", "Convolution"):
            continue
        source, weight = (value.get_node() for value in node.input_values()[:2])
        types = (_fact(source, "outputPrecisions"), _fact(weight, "outputPrecisions"))
        if name := name_of(node.get_friendly_name()):
            executed[name] = types
        elif weights and _fact(weight, "layerType") == "Const":  # a product of two activations has no weight
            unnamed.append((node.get_friendly_name(), _size(weight.get_output_shape(0)), types))
    missing = {name: _size(shape) for name, shape in (weights or {}).items() if name not in executed}
    fits = [size for _, size, _ in unnamed] == list(missing.values())
    names = list(missing) if fits else [name for name, _, _ in unnamed]
    return executed | {name: types for name, (_, _, types) in zip(names, unnamed, strict=True)}


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """Return (O, I) of a weight: groups of inputs, and the two dimensions of a 1 × 1 convolution, count as inputs."""
    return shape[0], math.prod(shape[1:])


def _fact(node: openvino.Node, name: str) -> str:
    return node.get_rt_info()[name].astype(str).split(",")[0]  # a node that feeds several others lists the type of each output


def _matmul(friendly_name: str) -> str | None:
    match = MATMUL_NAME.search(friendly_name)
    return match and match[1]
