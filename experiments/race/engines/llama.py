"""llama.cpp, on a GGUF file that is written here."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.race.engines.base import Stepwise
from gpt2opt import environment


class LlamaCpp(Stepwise):
    name, package = "llama.cpp Q8_0", "llama-cpp-python"
    full_heads = True
    files = ("model.gguf",)
    block_bytes = head_bytes = 34 / 32  # 32 weights and an FP16 scale
    note = "unpruned: it has no pruned heads; on CPUs with AMX without weights repacked for it, which are known to crash it"

    def prepare(self, source: Path, folder: Path) -> None:
        from gpt2opt.sources.models import load_model

        write_gguf(load_model(source)[1], folder / "model.gguf")

    def load(self, folder: Path, threads: int) -> None:
        import ctypes

        import llama_cpp

        self.api, self.threads = llama_cpp, threads
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        # Weights repacked for AMX are known to end in a segmentation fault in the first prompt: ggml-org/llama.cpp#20824.
        settings.use_extra_bufts = "amx_int8" not in (environment.cpu_flags() or ())
        self.model = llama_cpp.llama_model_load_from_file(str(folder / "model.gguf").encode(), settings)
        if not self.model:
            raise RuntimeError("llama.cpp did not load the model")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = None

    def open(self, batch: int, context: int) -> None:
        if self.context:
            self.api.llama_free(self.context)
        settings = self.api.llama_context_default_params()
        settings.n_seq_max, settings.n_ctx = batch, batch * -(-context // 256) * 256
        settings.n_batch = batch * context
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.flash_attn_type = batch > 1  # on CPUs it is the slower way to decode one sequence, and the faster for several
        self.context = self.api.llama_init_from_model(self.model, settings)

    def read(self, ids: np.ndarray, past: int) -> np.ndarray:
        with self._batch(ids, past) as tokens:
            if self.api.llama_decode(self.context, tokens):
                raise RuntimeError("llama_decode failed")
        # A view: llama.cpp keeps the logits that were asked for one behind the other, in the order of the batch.
        return np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (len(ids), self.vocab_size))

    @contextlib.contextmanager
    def _batch(self, ids: np.ndarray, past: int) -> Iterator:
        length = ids.shape[1]
        tokens = self.api.llama_batch_init(ids.size, 0, 1)
        tokens.n_tokens = ids.size
        for i, token in enumerate(ids.ravel().tolist()):
            row, column = divmod(i, length)
            tokens.token[i], tokens.pos[i] = token, past + column
            tokens.n_seq_id[i], tokens.seq_id[i][0] = 1, row
            tokens.logits[i] = column == length - 1
        yield tokens
        self.api.llama_batch_free(tokens)


def write_gguf(model, path: Path) -> None:
    """Write a GPT-2 for llama.cpp: matmul weights and embeddings in Q8_0, norms, biases and positions in FP32, no tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in model.transformer.state_dict().items():
        value = tensor.float().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if value.ndim == 2 and not name.startswith("wpe"):
            kind = gguf.GGMLQuantizationType.Q8_0
            # Conv1D keeps its weight (in, out), GGUF wants (out, in).
            value = gguf.quants.quantize(np.ascontiguousarray(value.T if name.startswith("h.") else value), kind)
        writer.add_tensor(gguf_name(name), value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Return what llama.cpp calls a tensor of `GPT2Model`.

    >>> gguf_name("h.3.mlp.c_fc.weight")
    'blk.3.ffn_up.weight'
    """
    for theirs, ours in GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    return name


GGUF_NAMES = {
    "h.": "blk.", "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
