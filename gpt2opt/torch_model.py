"""A GPT-2 in torch as the metrics take it: its logits, a decoder with a KV cache, and what runs in a fresh process."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GPT2LMHeadModel,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpt2opt import environment
from gpt2opt.decoding.decoder import Greedy, as_numpy, check_prompts
from gpt2opt.decoding.processors import Process
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.environment import device
from gpt2opt.measure.memory import Vram, read_peak_vram
from gpt2opt.measure.quality import Logits
from gpt2opt.sources.models import load_model

if TYPE_CHECKING:
    from gpt2opt.runtime.ir_model import IrModel


def device_name() -> str:
    return environment.describe()["gpu"] or environment.describe()["cpu"]


class TorchModel:
    """A torch model as a `Model` of the generation loop. hidden: its decoders show their hidden states, for contrastive search."""

    def __init__(self, model: GPT2LMHeadModel, hidden: bool = False):
        self.model, self.hidden, self.context = model, hidden, model.config.n_positions

    def decoder(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 0) -> "TorchDecoder":
        check_prompts(prompts, max_new_tokens, self.context, self.model.config.vocab_size)
        return TorchDecoder(self.model, prompts, self.hidden)


class TorchDecoder:
    """A `Decoder` of a torch model at work on B prompts of any lengths; the shorter ones are padded on the left, behind a mask."""

    def __init__(self, model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]] | torch.Tensor, hidden: bool = False):
        """Take the prompts' token ids. hidden: keep the hidden states of each call, for contrastive search."""
        self.model, self.hidden = model, hidden
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

    def hidden_states(self) -> list[np.ndarray]:
        """Return, for each sequence, the hidden states (tokens, D) that the head got in the last call."""
        width = self.last_hidden.shape[1]
        return [as_numpy(states[mask[-width:].bool()]) for states, mask in zip(self.last_hidden, self.mask, strict=True)]

    @torch.inference_mode()
    def _call(self, ids: torch.Tensor) -> torch.Tensor:
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
        if self.hidden:
            self.last_hidden = out.last_hidden_state
        return self.model.lm_head(out.last_hidden_state[:, -1])


def transformers_process(settings: DecodingSettings) -> Process:
    """Return transformers' own logits processors for these settings, as the generation loop takes them."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.do_sample:
        for wanted, processor in (
            (settings.temperature != 1, lambda: TemperatureLogitsWarper(float(settings.temperature))),
            (settings.top_k, lambda: TopKLogitsWarper(settings.top_k)),
            (settings.top_p < 1, lambda: TopPLogitsWarper(settings.top_p)),
            (settings.min_p, lambda: MinPLogitsWarper(settings.min_p)),
            (settings.typical_p < 1, lambda: TypicalLogitsWarper(settings.typical_p)),
        ):
            if wanted:
                processors.append(processor())

    def process(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
        return processors(torch.tensor([ids]), torch.from_numpy(scores)[None])[0].numpy()

    return process


def generate_tokens(model: GPT2LMHeadModel, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Continue prompts of one length greedily with a torch model; return the new tokens of each."""
    return Greedy(TorchDecoder(model, torch.tensor(prompts))).generate(new_tokens)


def logits_of(model: "GPT2LMHeadModel | IrModel") -> Logits:
    """Return what a torch model or an IR answers, as the metrics take it: a torch model's logits hold until its next call."""
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


def generate_from_torch(folder: str, prompt: list[int], new_tokens: int) -> Generator[str, None, Vram | None]:
    """Load an FP16 model, generate greedily and return the VRAM that took; runs in a fresh process, and names its steps."""
    torch.set_num_threads(environment.threads())
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
