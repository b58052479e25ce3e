"""A GPT-2 in torch as the metrics take it: its logits, a decoder with a KV cache, and what runs in a fresh process."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt import environment
from gpt2opt.decoding.decoder import Greedy, check_prompts
from gpt2opt.environment import device
from gpt2opt.measure.memory import Vram, read_peak_vram
from gpt2opt.measure.quality import Logits
from gpt2opt.sources.models import find_model, load_model

if TYPE_CHECKING:
    from gpt2opt.runtime.ir_model import IrModel
    from gpt2opt.runtime.onnx_model import OnnxModel


def load_fp16_model(model_id: str | Path = "auto") -> tuple[PreTrainedTokenizerBase, GPT2LMHeadModel]:
    """Load a GPT-2 with FP16 parameters, on the GPU if there is one. model_id: as `find_model` takes it, whose errors these are."""
    tokenizer, model = load_model(find_model(str(model_id)).path, "float16")
    return tokenizer, model.to(device())


class TorchModel:
    """A torch model as a `Model` of the generation loop."""

    def __init__(self, model: GPT2LMHeadModel):
        self.model, self.context = model, model.config.n_positions

    def decoder(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 0) -> "TorchDecoder":
        check_prompts(prompts, max_new_tokens, self.context, self.model.config.vocab_size)
        return TorchDecoder(self.model, prompts)


class TorchDecoder:
    """A `Decoder` of a torch model at work on B prompts of any lengths; the shorter ones are padded on the left, behind a mask."""

    def __init__(self, model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]] | torch.Tensor):
        self.model = model
        texts = [torch.as_tensor(prompt) for prompt in prompts]
        self.lengths = torch.tensor([len(ids) for ids in texts]).to(model.device)
        self.prompts = pad_sequence([ids.flip(0) for ids in texts], batch_first=True).flip(1).to(model.device)
        self.padded = len({len(ids) for ids in texts}) > 1
        self.past: Any = None

    def prefill(self) -> torch.Tensor:
        self.past, width = None, self.prompts.shape[1]
        self.read, self.mask = self.lengths, (torch.arange(width, device=self.lengths.device) >= width - self.lengths[:, None]).long()
        return self._call(self.prompts)

    def decode(self, ids: torch.Tensor | np.ndarray) -> torch.Tensor:
        self.read, self.mask = self.read + 1, torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return self._call(torch.as_tensor(ids, device=self.mask.device))

    def keep(self, rows: Sequence[int]) -> None:
        kept = torch.tensor(rows, device=self.mask.device)
        if isinstance(self.past, tuple):  # before 4.47 transformers gave GPT-2 no cache object
            self.past = tuple(tuple(states[kept] for states in layer) for layer in self.past)
        else:
            self.past.reorder_cache(kept)
        self.read, self.mask = self.read[kept], self.mask[kept]

    @torch.inference_mode()
    def _call(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(self._hidden(ids)[:, -1])

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Read ids (B, T) behind the cache; return the last hidden states (B, T, D)."""
        layout = {}
        if self.padded:  # without a mask transformers knows what is causal, and attention computes half as much
            width = torch.arange(ids.shape[1], device=ids.device)
            positions = self.read[:, None] - ids.shape[1] + width
            layout = {"attention_mask": self.mask, "position_ids": positions.clamp(min=0)}
        # By embeddings: where the config names a padding token, as it does once a model was fine-tuned, transformers searches ids for it.
        # That would slow down such models alone, and on a GPU every step would wait for the answer.
        embeddings = self.model.transformer.wte(ids)
        out = self.model.transformer(inputs_embeds=embeddings, past_key_values=self.past, use_cache=True, **layout)
        self.past = out.past_key_values
        return out.last_hidden_state


def generate_tokens(model: GPT2LMHeadModel, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Continue prompts of one length greedily with a torch model; return the new tokens of each."""
    return Greedy(TorchDecoder(model, torch.tensor(prompts))).generate(new_tokens)


def logits_of(model: "GPT2LMHeadModel | IrModel | OnnxModel") -> Logits:
    """Return what a model of any runtime answers, as the metrics take it: a torch model's logits hold until its next call."""
    if not isinstance(model, nn.Module):
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


def decoder_from_torch(folder: str, prompt: list[int]) -> TorchDecoder:
    """Load an FP16 model with a prompt, to be timed; runs in a process of its own."""
    torch.set_num_threads(environment.threads())
    return TorchDecoder(load_model(Path(folder), "float16")[1].to(device()), torch.tensor([prompt]))


def generate_from_torch(folder: str, prompt: list[int], new_tokens: int) -> Generator[str, None, Vram | None]:
    """Load an FP16 model and generate greedily, in a fresh process; yield the name of each step, and return the VRAM that it took."""
    decoder = decoder_from_torch(folder, prompt)
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
