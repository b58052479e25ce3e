"""GPT-2 for Qualcomm's Cloud AI 100: the ONNX graph that its compiler takes, and the call of the compiler.

The card keeps keys and values from call to call ("retained state") in buffers of a fixed length, which the compiler finds by the names of
an input and an output, `past_key.0` and `past_key.0_RetainedState`. So each token's keys and values are written where `position_ids` says.
Names and options are those of Qualcomm's Efficient Transformers. No card was at hand; the tests run the graph in ONNX Runtime.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2opt.sources.gpt2 import check_finite, heads_per_layer
from gpt2opt.storage import new_folder

ONNX_NAME, SPECIALIZATIONS, CUSTOM_IO = "model.onnx", "specializations.json", "custom_io.yaml"
PREFILL_TOKENS = 32
"""A prompt is read in pieces of this many tokens, the last of them padded with positions of −1."""
AI_CORES = 16  # of a card
COMPILER, SDK_FOLDER = "qaic-compile", "/opt/qti-aic/exec"
OPSET = 17
MASKED = -1e4  # a score that leaves no probability, and that FP16 holds


class _RetainedState:
    """The KV cache of one call, as transformers' attention uses it: new keys and values replace what is at their positions."""

    def __init__(self, past: tuple[Tensor, ...], slots: Tensor):
        self.past, self.slots = list(past), slots

    def update(self, keys: Tensor, values: Tensor, layer: int, _: Any = None) -> list[Tensor]:
        index = self.slots[:, None, :, None].expand(keys.shape)
        own = slice(2 * layer, 2 * layer + 2)
        self.past[own] = [past.scatter(2, index, new) for past, new in zip(self.past[own], (keys, values), strict=True)]
        return self.past[own]


class _WithRetainedState(nn.Module):
    """A GPT-2 as the card runs it: ids and positions (B, T) and the state in, the logits (B, 1, V) of the last token and the state out."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        context = past[0].shape[2]
        # A padding token goes to the last slot. Nothing attends to that until a token with the last position is written there.
        state = _RetainedState(past, torch.where(position_ids < 0, context - 1, position_ids))
        visible = torch.arange(context) <= position_ids[:, None, :, None]
        hidden = self.model.transformer(
            input_ids, position_ids=position_ids.clamp(min=0), attention_mask=torch.where(visible, 0.0, MASKED),
            past_key_values=state, cache_position=position_ids[0], use_cache=True,
        ).last_hidden_state  # fmt: skip
        last = position_ids.argmax(1)[:, None, None].expand(-1, -1, hidden.shape[2])
        return self.model.lm_head(hidden.gather(1, last)), *state.past


def export_qaic(model: Any, tokenizer: Any, out_dir: Path | str) -> Path:
    """Write an FP32 GPT-2 as the compiler of Cloud AI 100 takes it, with its config and tokenizer; return the folder.

    Beside the graph are `specializations.json`, the shapes to compile for (a piece of a prompt, and one token), and `custom_io.yaml`,
    which says that the state is FP16. The folder appears whole or not at all.
    """
    check_finite(model)
    heads, config = heads_per_layer(model), model.config
    names = [f"past_{kind}.{layer}" for layer in range(config.n_layer) for kind in ("key", "value")]
    states = [f"{name}_RetainedState" for name in names]
    past = [torch.zeros(1, heads, config.n_positions, model.transformer.h[0].attn.head_dim) for _ in names]
    positions = torch.arange(min(PREFILL_TOKENS, config.n_positions))[None]
    ids, cache = {0: "batch_size", 1: "seq_len"}, {0: "batch_size", 2: "ctx_len"}
    with new_folder(out_dir) as partial, torch.inference_mode():
        torch.onnx.export(
            _WithRetainedState(model).eval(), (positions, positions, *past), str(partial / ONNX_NAME), dynamo=False, opset_version=OPSET,
            input_names=["input_ids", "position_ids", *names], output_names=["logits", *states],
            dynamic_axes={"input_ids": ids, "position_ids": ids, "logits": {0: "batch_size"}, **dict.fromkeys(names + states, cache)},
        )  # fmt: skip
        shapes = [{"batch_size": "1", "seq_len": str(tokens), "ctx_len": str(config.n_positions)} for tokens in (positions.shape[1], 1)]
        (partial / SPECIALIZATIONS).write_text(json.dumps({"specializations": shapes}, indent=1) + "\n")
        (partial / CUSTOM_IO).write_text("".join(f" - IOName: {name}\n   Precision: float16\n\n" for name in names + states))
        config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return Path(out_dir)


def find_compiler() -> str:
    """Return the path of the compiler, or raise ImportError with what to do."""
    found = shutil.which(COMPILER, path=os.pathsep.join((SDK_FOLDER, os.environ.get("PATH", ""))))
    if found is None:
        raise ImportError(
            f"{COMPILER} of Qualcomm's Cloud AI Apps SDK is neither in {SDK_FOLDER} nor on PATH: install the SDK, or take what "
            "export(folder, backends=['qaic']) writes to a machine that has it; backend='openvino' needs no SDK"
        )
    return found


def compile_program(directory: Path | str, out_dir: Path | str, num_cores: int = AI_CORES) -> Path:
    """Compile what `export_qaic` wrote for a card; return the folder of the program, which appears whole or not at all."""
    compiler, directory = find_compiler(), Path(directory)
    with new_folder(out_dir) as partial:
        command = [
            compiler, "-aic-hw", f"-m={directory / ONNX_NAME}", "-retained-state", "-convert-to-fp16", f"-aic-num-cores={num_cores}",
            f"-network-specialization-config={directory / SPECIALIZATIONS}", f"-custom-IO-list-file={directory / CUSTOM_IO}",
            f"-aic-binary-dir={partial / 'qpc'}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{COMPILER} failed with exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    return Path(out_dir)
