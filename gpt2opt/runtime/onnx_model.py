"""GPT-2 in ONNX Runtime: what `export_onnx` wrote, as a model that the generation loop drives.

Keys and values never pass through Python: IO binding hands those that one call returns to the next one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2opt.decoding.decoder import check_fits, check_prompts
from gpt2opt.environment import threads
from gpt2opt.errors import raise_cause
from gpt2opt.runtime.manifest import read_config

ONNX_NAME = "model.onnx"
MISSING = "ONNX Runtime is not installed: `pip install 'gpt2opt[onnx]'` brings it, and backend='openvino' works without it"


def load_onnx(place: Path | str, num_threads: int | None = None) -> "OnnxModel":
    """Load what `export_onnx` wrote, a directory, for the CPU; or the ONNX file in it. num_threads: all of this process by default."""
    onnxruntime, path = require_onnxruntime(), Path(place) if Path(place).suffix == ".onnx" else Path(place, ONNX_NAME)
    context = read_config(path.parent, "n_positions")
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}; name a directory that export_onnx wrote")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads or threads(), 1
    options.log_severity_level = 3  # errors; they are raised too
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each kind of damage raises an error of its own
        raise_cause(error)
        raise ValueError(f"can't load {path} ({str(error).strip()[:200]!r}); export the model again") from error
    return OnnxModel(session, context)


def require_onnxruntime() -> Any:
    """Return the module onnxruntime, or raise ImportError with what to do."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(MISSING) from None
    return onnxruntime


class OnnxModel:
    """A GPT-2 in ONNX Runtime, as a `Model` of the generation loop. Several decoders may take turns on it."""

    def __init__(self, session: Any, context: int):
        self.session, self.context = session, context
        self.inputs = {port.name: port for port in session.get_inputs()}
        self.outputs = [port.name for port in session.get_outputs()]
        self.vocab_size = session.get_outputs()[0].shape[-1]

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the logits (B, T, V) of whole sequences (B, T): token by token if the graph gives those of the last position alone."""
        every = self.decoder(input_ids).read_prompts()
        if every.shape[:2] == input_ids.shape:
            return every
        decoder = self.decoder(input_ids[:, :1])
        return np.stack([decoder.prefill(), *(decoder.decode(ids[:, None]) for ids in input_ids[:, 1:].T)], 1)

    def decoder(self, prompts: np.ndarray | Sequence[Sequence[int]], max_new_tokens: int = 0) -> "OnnxDecoder":
        """Return a decoder of B prompts of any lengths; see `gpt2opt.decoding.decoder.Model`."""
        return OnnxDecoder(self, check_prompts(prompts, max_new_tokens, self.context, self.vocab_size))


class OnnxDecoder:
    """A `Decoder` of B prompts of any lengths; the shorter ones are padded on the left, behind a mask.

    read: (B,) tokens of each sequence in the cache. mask: (B, past) 1 where the cache holds a token, 0 where it holds padding. cache: the
    keys and values (B, H, past, D), by the names of the graph's inputs.
    """

    def __init__(self, model: OnnxModel, prompts: list[np.ndarray]):
        self.model, self.prompts = model, prompts

    def prefill(self) -> np.ndarray:
        """Read the prompts; return the logits (B, V) of their last tokens."""
        return self.read_prompts()[:, -1]

    def read_prompts(self) -> np.ndarray:
        """Read the prompts; return the logits that the graph gives: (B, T, V), or (B, 1, V) of the last tokens alone."""
        self.read = np.array([len(ids) for ids in self.prompts])
        width = self.read.max()
        self.mask = (np.arange(width) >= width - self.read[:, None]).astype(np.int64)
        ids = np.zeros_like(self.mask)
        ids[self.mask == 1] = np.concatenate(self.prompts)
        self.cache = {}
        for name, port in self.model.inputs.items():
            if name.startswith("past"):
                _, heads, _, head_dim = port.shape
                self.cache[name] = _on_cpu(np.zeros((len(ids), heads, 0, head_dim), np.float32))
        return self._run(ids)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Read one further token of each sequence, ids (B, 1); return the logits (B, V) behind them."""
        check_fits(int(self.read.max()) + 1, 0, self.model.context)
        self.read = self.read + 1
        self.mask = np.pad(self.mask, ((0, 0), (0, 1)), constant_values=1)
        return self._run(np.ascontiguousarray(ids, np.int64))[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order; columns that only padded for those that leave are dropped."""
        kept = list(rows)
        padding = self.mask[kept].argmax(1).min()
        self.read, self.mask = self.read[kept], self.mask[kept, padding:]
        self.cache = {name: _on_cpu(value.numpy()[kept, :, padding:]) for name, value in self.cache.items()}

    def _run(self, ids: np.ndarray) -> np.ndarray:
        session, binding = self.model.session, self.model.session.io_binding()
        positions = self.read[:, None] - ids.shape[1] + np.arange(ids.shape[1])
        inputs = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions.clip(0)}
        for name in inputs.keys() & self.model.inputs.keys():
            binding.bind_cpu_input(name, inputs[name])
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.model.outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        out = dict(zip(self.model.outputs, binding.get_outputs(), strict=True))
        self.cache = {name: out[name.replace("past_key_values", "present")] for name in self.cache}
        return out["logits"].numpy()


def _on_cpu(states: np.ndarray) -> Any:
    """Return keys or values as a tensor of the runtime."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(states))
