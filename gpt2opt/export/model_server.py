"""A directory that OpenVINO Model Server takes as it is: an exported IR, its tokenizer as IR, and the graph that the server runs it with.

The server finds `graph.pbtxt` in the directory that its option `--model_path` names, reads how long a text may be from `config.json` and
when one ends from `generation_config.json`, and answers at `/v3/completions`. Inside it runs OpenVINO GenAI's continuous batching.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from gpt2opt.environment import installed
from gpt2opt.runtime.manifest import Manifest, is_ir, read_manifest
from gpt2opt.storage import PREFIX, new_folder

INT8_OF_A_RUN = "4-quantize"
TAKEN = ("openvino_model.*", "*.json", "merges.txt")
TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
GRAPH_NAME = "graph.pbtxt"
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

    Args:
        model: the folder of a run, whose INT8 model is taken; an IR directory; or a torch directory, a hub id, `bundled` or `auto`,
            which is exported in FP32.
        out_dir: a new or empty folder, or one that was written here before.

    Raises:
        ValueError: there is no such model, the IR was changed or cut short, or `out_dir` can't be written.
        ImportError: `openvino_tokenizers` is missing.
    """
    if not installed("openvino-tokenizers"):
        version = ".".join((installed("openvino") or "").split(".")[:2])
        raise ImportError(
            f"the server needs the tokenizer as IR, and openvino-tokenizers makes it: `pip install openvino-tokenizers=={version}.*`"
        )
    with new_folder(out_dir) as partial:
        name = _write_model(model, partial)
        _write_tokenizers(partial)
        manifest = read_manifest(partial)
        (partial / GRAPH_NAME).write_text(_graph(manifest), encoding="utf-8")
        files = tuple(sorted(path.name for path in partial.iterdir() if not path.name.startswith(PREFIX)))
    return Served(name, manifest.weights, manifest.kv_cache, str(out_dir), files)


def _graph(manifest: Manifest) -> str:
    """Return the text of `graph.pbtxt`, with the properties by which `load_ir` computes, apart from the number of threads."""
    from gpt2opt.runtime.compile import PROPERTIES

    properties = {**PROPERTIES, "KV_CACHE_PRECISION": manifest.kv_cache}
    return GRAPH.format(cache_gb=CACHE_GB, plugin_config=json.dumps(properties))


def _write_model(model: str, folder: Path) -> str:
    """Write the IR, the configs and the tokenizer's files into an empty folder; return the name of the model."""
    given = Path(model)
    if (given / "run.json").exists() and not is_ir(given / INT8_OF_A_RUN):
        raise ValueError(f"the run in {model} has no INT8 model in {INT8_OF_A_RUN}; run stage 4, or name the folder of another stage in it")
    for directory in (given, given / INT8_OF_A_RUN):
        if is_ir(directory):
            read_manifest(directory)
            for path in {path for pattern in TAKEN for path in directory.glob(pattern) if not path.name.startswith(PREFIX)}:
                shutil.copyfile(path, folder / path.name)
            return str(directory)
    from gpt2opt.export.openvino import export_ir
    from gpt2opt.quantize.linear import prepare_for_export
    from gpt2opt.sources.models import find_model, load_model

    found = find_model(model)
    tokenizer, loaded = load_model(found.path)
    export_ir(prepare_for_export(loaded), tokenizer, folder)
    return str(found)


def _write_tokenizers(folder: Path) -> None:
    from openvino import save_model
    from openvino_tokenizers import convert_tokenizer

    from gpt2opt.sources.models import load_tokenizer

    parts = convert_tokenizer(load_tokenizer(folder), with_detokenizer=True, add_special_tokens=False)  # the answer continues the prompt
    for converted, name in zip(parts, TOKENIZERS, strict=True):
        save_model(converted, folder / name)
