"""A directory that OpenVINO Model Server takes as it is: an exported IR, its tokenizer as IR, and the graph that the server runs it with.

The server finds `graph.pbtxt` in the directory that its option `--model_path` names, reads how long a text may be from `config.json` and
when one ends from `generation_config.json`, and answers at `/v3/completions`. Inside it runs OpenVINO GenAI's continuous batching.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import openvino

from gpt2opt.environment import installed
from gpt2opt.export.openvino import export_ir
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.runtime.compile import PROPERTIES
from gpt2opt.runtime.manifest import ir_of_run, is_ir, read_manifest
from gpt2opt.settings import QUANTIZE
from gpt2opt.sources.models import find_model, load_model, load_tokenizer
from gpt2opt.storage import PREFIX, new_folder

TAKEN = ("openvino_model.*", "*.json", "merges.txt")
CACHE_GB = 1
"""Memory that the server keeps for keys and values of all texts: 27 texts of 1024 tokens for `gpt2` in FP16."""

GRAPH = """\
# How OpenVINO Model Server runs this directory. All but the node_options is the same for every language model.
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node {{
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info {{ tag_index: "LOOPBACK:0" back_edge: true }}
  node_options {{
    [type.googleapis.com/mediapipe.LLMCalculatorOptions] {{
      models_path: "./"
      device: "CPU"
      cache_size: {cache_gb}
      # Without these the plugin would round keys and values to INT8 by channel, and compute in bf16 where the CPU can.
      plugin_config: '{plugin_config}'
    }}
  }}
  input_stream_handler {{
    input_stream_handler: "SyncSetInputStreamHandler"
    options {{
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] {{ sync_set {{ tag_index: "LOOPBACK:0" }} }}
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Served:
    """What was written. model: what it was made from. weights, kv_cache: the types of `Manifest`."""

    model: str
    weights: str
    kv_cache: str
    folder: str
    files: tuple[str, ...]


def export_for_server(model: str, out_dir: Path | str) -> Served:
    """Write a directory for OpenVINO Model Server; it appears whole or not at all.

    model: the folder of a run, whose INT8 model is taken; an IR directory; or a torch directory, a hub id, `bundled` or `auto`, which is
    exported in FP32.
    """
    if not installed("openvino-tokenizers"):
        version = ".".join((installed("openvino") or "").split(".")[:2])
        advice = f"`pip install openvino-tokenizers=={version}.*`"
        raise ImportError(f"the server needs the tokenizer as IR, and openvino-tokenizers makes it: {advice}")
    from openvino_tokenizers import convert_tokenizer

    with new_folder(out_dir) as partial:
        name = _write_model(model, partial)
        # An answer continues the prompt, so no special token is added.
        converted = convert_tokenizer(load_tokenizer(partial), with_detokenizer=True, add_special_tokens=False)
        for graph, kind in zip(converted, ("tokenizer", "detokenizer"), strict=True):
            openvino.save_model(graph, partial / f"openvino_{kind}.xml")
        manifest = read_manifest(partial)
        # The server computes by the properties of `load_ir`, apart from the number of threads.
        properties = json.dumps({**PROPERTIES, "KV_CACHE_PRECISION": manifest.kv_cache})
        (partial / "graph.pbtxt").write_text(GRAPH.format(cache_gb=CACHE_GB, plugin_config=properties), encoding="utf-8")
        files = tuple(sorted(path.name for path in partial.iterdir() if not path.name.startswith(PREFIX)))
    return Served(name, manifest.weights, manifest.kv_cache, str(out_dir), files)


def _write_model(model: str, folder: Path) -> str:
    """Write the IR, the configs and the tokenizer's files into an empty folder; return the name of the model."""
    directory = ir_of_run(model)
    if is_ir(directory):
        read_manifest(directory)
        for path in {path for pattern in TAKEN for path in directory.glob(pattern) if not path.name.startswith(PREFIX)}:
            shutil.copyfile(path, folder / path.name)
        return str(directory)
    if Path(model, "run.json").exists():
        raise ValueError(f"the run in {model} has no INT8 model in {QUANTIZE}; run stage 4, or name the folder of another stage in it")
    found = find_model(model)
    tokenizer, loaded = load_model(found.path)
    export_ir(prepare_for_export(loaded), tokenizer, folder)
    return str(found)
