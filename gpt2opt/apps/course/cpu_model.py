"""An IR behind the calls that cells make of a torch model: tensors in and out, on the CPU."""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import CausalLMOutput

from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.runtime.ir_model import IrModel


@dataclasses.dataclass(frozen=True)
class CpuModel:
    """A compiled GPT-2 of OpenVINO. ir: what runs it. eos_token_id: ends a text, if any does. dtype: of the weights of the matmuls."""

    ir: IrModel
    eos_token_id: int | None
    dtype: torch.dtype
    device = torch.device("cpu")

    def eval(self) -> "CpuModel":
        """Return the model: it knows no other mode."""
        return self

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> CausalLMOutput:
        """Return the logits (B, T, V) float32 of ids (B, T), and the mean loss in nats where labels are given, -100 for none."""
        if attention_mask is not None and not attention_mask[:, 0].all():
            raise ValueError("the ids are padded on the left, expected padding on the right, which the tokens before it don't see")
        logits = torch.from_numpy(self.ir.logits(input_ids.numpy()))
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)  # type: ignore[arg-type] # it names a class that tensors are not instances of

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, max_length: int | None = None, pad_token_id: int | None = None,
        **settings: Any,
    ) -> Tensor:  # fmt: skip
        """Continue B prompts (B, T) until end-of-text; return prompts and new tokens (B, T + new tokens).

        Args:
            attention_mask: 0 where a prompt is padded, on the left.
            max_length: of prompt and new tokens, in place of `max_new_tokens`.
            pad_token_id: follows a text that ends before others; by default end-of-text, or 0 if there is none.
            settings: see `DecodingSettings`, whose names and defaults are those of transformers: `max_new_tokens`, `do_sample`, `top_k`, …
        """
        if max_length is not None:
            settings["max_new_tokens"] = max_length - input_ids.shape[1]
        known = {field.name for field in dataclasses.fields(DecodingSettings)}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"generate() got {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
        chosen = DecodingSettings(**{"eos_token_id": self.eos_token_id, **settings})
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask, strict=True)]
        generated = generate(self.ir, prompts, chosen)
        padding = (self.eos_token_id or 0) if pad_token_id is None else pad_token_id
        new = pad_sequence([torch.tensor(each.ids) for each in generated], batch_first=True, padding_value=padding)
        return torch.cat([input_ids, new], 1)
