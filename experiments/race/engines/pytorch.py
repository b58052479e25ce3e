"""torch, eager and compiled."""

import os
from pathlib import Path
from typing import Any

from experiments.race.engines.base import Stepwise
from gpt2opt.decoding.decoder import Logits


class TorchFp32(Stepwise):
    name, package = "torch eager FP32", "torch"
    files = ("model.safetensors",)
    dtype, attention = "float32", "sdpa"
    cache: Any

    def prepare(self, source: Path, folder: Path) -> None:
        from gpt2opt.sources.models import load_model

        load_model(source, self.dtype)[1].save_pretrained(folder)

    def load(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(threads)
        found = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, self.dtype), attn_implementation=self.attention)
        self.model = found.eval()

    def read(self, ids: Any, past: int) -> Logits:
        import torch

        with torch.inference_mode():
            cache = self.cache if past else None
            out = self.model(input_ids=torch.as_tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
            self.cache = out.past_key_values
            return out.logits[:, -1]


class TorchEagerAttention(TorchFp32):
    name, attention = "torch FP32 without SDPA", "eager"
    note = "attention written out in matmuls and a softmax; all other rows of torch have the fused one (SDPA)"


class TorchBf16(TorchFp32):
    name, dtype = "torch eager bf16", "bfloat16"
    block_bytes = head_bytes = 2


class TorchCompile(TorchFp32):
    name = "torch.compile FP32"
    note = "default mode, dynamic shapes; compiled during the warm-up"

    def load(self, folder: Path, threads: int) -> None:
        super().load(folder, threads)
        self.model = compiled(self.model, folder)


class TorchInt8(TorchFp32):
    name = "torch dynamic INT8"
    files = ("model.pt",)
    block_bytes = head_bytes = 1
    note = "the embedding keeps an FP32 copy of the head's weight"

    def prepare(self, source: Path, folder: Path) -> None:
        import torch

        from gpt2opt.quantize.linear import prepare_for_export
        from gpt2opt.sources.models import load_model

        model = prepare_for_export(load_model(source)[1])  # GPT-2's own Conv1D would be passed over
        torch.save(torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8), folder / "model.pt")

    def load(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model = torch.load(folder / "model.pt", weights_only=False)  # written by `prepare`


class TorchInt8Compile(TorchInt8):
    name = "torch.compile dynamic INT8"
    note = "both together, compiled during the warm-up"

    def load(self, folder: Path, threads: int) -> None:
        super().load(folder, threads)
        self.model = compiled(self.model, folder)


def compiled(model: Any, folder: Path) -> Any:
    """Return a model that is compiled when it is first called, with what is compiled in `folder`."""
    import torch

    # A cache of its own: its peak memory is then that of compiling, in the first run and in later ones.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # more are processes of their own, which would idle beside the race
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # otherwise it would go on in eager mode, and only a log would say so
    return torch.compile(model, dynamic=True)
