"""A GPT-2 in torch as the metrics take it: its logits, a decoder with a KV cache, and what runs in a fresh process."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from gpt2opt import environment
from gpt2opt.decoding import Greedy
from gpt2opt.measure.memory import Vram, read_peak_vram, reset_peak_vram
from gpt2opt.measure.quality import Logits
from gpt2opt.runtime.ir_model import IrModel
from gpt2opt.sources.models import load_model


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    return environment.describe()["gpu"] or environment.describe()["cpu"]


class TorchDecoder:
    """A `Decoder` of a torch model at work on prompts (B, T)."""

    def __init__(self, model: GPT2LMHeadModel, prompt_ids: torch.Tensor):
        self.model, self.prompt_ids = model, prompt_ids.to(model.device)

    def prefill(self) -> torch.Tensor:
        return self._read(self.prompt_ids, None)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return self._read(ids, self.past)

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor, past) -> torch.Tensor:
        out = self.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return out.logits[:, -1]


def generate_tokens(model: GPT2LMHeadModel, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Continue prompts of one length greedily with a torch model; return the new tokens of each."""
    return Greedy(TorchDecoder(model, torch.tensor(prompts))).generate(new_tokens)


def logits_of(model: GPT2LMHeadModel | IrModel) -> Logits:
    """Return what a torch model or an IR answers, as the metrics take it: a torch model's logits hold until its next call."""
    if isinstance(model, IrModel):
        return lambda ids: model.logits(ids.numpy())
    head, kept = model.lm_head.weight, torch.empty(0)

    @torch.inference_mode()
    def logits(ids):
        nonlocal kept
        ids = ids.to(head.device)
        # transformers knows that a mask of ones is causal. Of its own accord it builds a mask, and attention computes the upper half too.
        hidden = model.transformer(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state.flatten(0, 1)
        # The head as V × tokens, into memory that is used again: a CPU multiplies faster that way round, and faults no new pages in.
        if kept.shape != (len(head), len(hidden)):
            kept = head.new_empty(len(head), len(hidden))
        return torch.mm(head, hidden.T, out=kept).T.view(*ids.shape, -1)

    return logits


def generate_from_torch(folder: str, prompt: list[int], new_tokens: int) -> Generator[str, None, Vram | None]:
    """Load an FP16 model, generate greedily and return the VRAM that took; runs in a fresh process, and names its steps."""
    torch.set_num_threads(environment.threads())
    reset_peak_vram()
    _, model = load_model(Path(folder), "float16")
    decoder = TorchDecoder(model.to(device()), torch.tensor([prompt]))
    yield "loaded"
    Greedy(decoder).generate(new_tokens)
    yield "steady"
    return read_peak_vram()


def logits_from_torch(folder: str, ids: list[list[int]]) -> np.ndarray:
    """Load a model in FP32 and return its logits (B, T, V); runs in a fresh process."""
    torch.set_num_threads(environment.threads())
    _, model = load_model(Path(folder), "float32")
    with torch.inference_mode():
        return model(torch.tensor(ids), use_cache=False).logits.numpy()
