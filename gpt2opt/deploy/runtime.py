"""Run a stateful GPT-2 IR on the CPU with openvino and numpy alone: no torch in the serving process."""

from pathlib import Path

import numpy as np

from gpt2opt.environment import threads

PROPERTIES = {
    # bf16 is the silent default on machines with AMX, u8 the silent default of the KV cache, and weight-compressed models have
    # their activations quantized at run time. All three would change what FP32 and INT8 mean here.
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
}


def cpu_properties(num_threads: int | None = None) -> dict[str, str]:
    """Return the properties that an IR is compiled with: `PROPERTIES`, and all threads that this process may use unless told."""
    return {**PROPERTIES, "INFERENCE_NUM_THREADS": str(num_threads or threads())}


class IrModel:
    """A compiled GPT-2 with its KV cache inside. Not for use from several threads at once."""

    def __init__(self, compiled):
        self.compiled = compiled
        self.request = compiled.create_infer_request()
        self._inputs = {name for port in compiled.inputs for name in port.get_names()}

    @property
    def num_cores(self) -> int:
        return self.compiled.get_property("INFERENCE_NUM_THREADS")

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the logits (B, T, V) float32 of whole sequences (B, T), read into an empty KV cache."""
        self.request.reset_state()
        return self._read(input_ids, 0).copy()  # the next call writes over the request's own tensor

    def generate(self, input_ids: np.ndarray, max_new_tokens: int) -> np.ndarray:
        """Continue (B, T) prompts greedily; return the new tokens (B, max_new_tokens)."""
        decoder = self.decoder(input_ids)
        decoder.start()
        tokens = [decoder.next_ids]
        for _ in range(max_new_tokens - 1):
            decoder.step()
            tokens.append(decoder.next_ids)
        return np.concatenate(tokens, axis=1)

    def decoder(self, input_ids: np.ndarray) -> "IrDecoder":
        return IrDecoder(self, np.asarray(input_ids, dtype=np.int64))

    def _read(self, input_ids: np.ndarray, past: int) -> np.ndarray:
        batch, length = input_ids.shape
        inputs = {
            "input_ids": input_ids,
            "attention_mask": np.ones((batch, past + length), dtype=np.int64),
            "position_ids": np.broadcast_to(np.arange(past, past + length), (batch, length)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self.request.infer({name: value for name, value in inputs.items() if name in self._inputs})
        return self.request.get_tensor("logits").data


class IrDecoder:
    """Greedy decoding, one token a call."""

    def __init__(self, model: IrModel, prompt_ids: np.ndarray):
        self.model, self.prompt_ids = model, prompt_ids

    def start(self) -> None:
        self.model.request.reset_state()
        self.past = 0
        self._read(self.prompt_ids)

    def step(self) -> None:
        self._read(self.next_ids)

    def _read(self, ids: np.ndarray) -> None:
        logits = self.model._read(ids, self.past)
        self.past += ids.shape[1]
        self.next_ids = logits[:, -1:].argmax(-1)


def load_ir(directory: Path | str, num_threads: int | None = None) -> IrModel:
    """Compile the IR in `directory` for the CPU.

    Args:
        directory: what `export_ir` or `quantize_int8` wrote.
        num_threads: CPU threads; all that this process may use unless told.

    Raises:
        ValueError: there is no IR, or it is damaged.
    """
    return IrModel(compile_ir(directory, num_threads))


def continue_text(directory: Path | str, prompt: str, new_tokens: int = 50) -> str:
    """Continue a prompt greedily with the IR and the tokenizer in `directory`; return the new text.

    Raises:
        ValueError: no IR, an empty prompt, or more tokens than the model's context holds.
    """
    from gpt2opt.sources.models import load_tokenizer

    model = load_ir(directory)
    tokenizer = load_tokenizer(directory)
    ids = tokenizer(prompt, verbose=False).input_ids
    room = tokenizer.model_max_length - new_tokens
    if not 0 < len(ids) <= room:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; with {new_tokens} new ones, from 1 to {room} fit into the context of "
            f"{tokenizer.model_max_length}"
        )
    return tokenizer.decode(model.generate(np.array([ids]), new_tokens)[0])


def generate_from_ir(directory: str, ids: list[int], new_tokens: int) -> list[int]:
    """Load an IR and generate greedily; runs in a fresh process, to see what that takes."""
    return load_ir(directory).generate(np.array([ids]), new_tokens)[0].tolist()


def compile_ir(directory: Path | str, num_threads: int | None = None):
    """Read and compile the IR in `directory`; see `load_ir`."""
    import openvino

    xml = ir_file(directory)
    try:
        return openvino.Core().compile_model(str(xml), "CPU", cpu_properties(num_threads))
    except RuntimeError as error:
        raise ValueError(f"can't compile {xml} ({str(error).strip()[-200:]!r}); the directory is damaged: export it again") from error


def ir_file(directory: Path | str) -> Path:
    """Return the path of the IR in a directory, or raise ValueError if a part of it is missing."""
    xml = Path(directory) / "openvino_model.xml"
    for part in (xml, xml.with_suffix(".bin")):
        if not part.is_file():
            raise ValueError(f"no {part.name} in {directory}; name a directory that stage 4 or export_ir wrote")
    return xml
