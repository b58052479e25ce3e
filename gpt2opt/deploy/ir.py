"""From a torch GPT-2 to a stateful OpenVINO IR directory, with pruned heads and, where quantized, with integer weights.

INC's own INT8 modules can't be traced, and it writes a torch state dict, not IR. So what INC found is carried over into a float
graph that fake-quantizes: the same integers and scales, in a form that OpenVINO reads as INT8.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from gpt2opt.deploy import graphs
from gpt2opt.deploy.manifest import write_manifest
from gpt2opt.sources.models import check_finite, fold_attention_scale
from gpt2opt.storage import new_folder

IR_NAME = "openvino_model.xml"


@dataclass(frozen=True)
class QuantizedLinear:
    """What becomes of one Linear layer with O outputs and I inputs.

    weight: (O, I) float32, already rounded to its integer grid. weight_scale: (O, G) float32, symmetric, one for each of G groups of
    inputs; G = 1 is per channel. bits: of the weight. input_scale, input_zero_point: the u8 grid of the input, one for the whole
    tensor; None: the input stays float.
    """

    weight: Tensor
    weight_scale: Tensor
    bits: int = 8
    input_scale: float | None = None
    input_zero_point: int = 0


class FakeQuantLinear(nn.Module):
    """A Linear with an integer weight and, while `quantize_input` is set, an input rounded to u8; it computes in float."""

    def __init__(self, quantized: QuantizedLinear, bias: Tensor | None):
        super().__init__()
        self.weight = nn.Parameter(quantized.weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        self.register_buffer("weight_scale", quantized.weight_scale.flatten())
        self.register_buffer("weight_zero_point", torch.zeros(self.weight_scale.numel(), dtype=torch.int32))
        # Plain numbers: read off the weight while tracing they would become a part of the graph.
        self.shape = tuple(quantized.weight.shape)
        self.grouped_shape = (self.shape[0] * quantized.weight_scale.shape[1], self.shape[1] // quantized.weight_scale.shape[1])
        self.highest = 2 ** (quantized.bits - 1) - 1
        self.input_scale = quantized.input_scale
        self.input_zero_point = quantized.input_zero_point
        self.quantize_input = quantized.input_scale is not None

    def quantized_weight(self) -> Tensor:
        grouped = torch.fake_quantize_per_channel_affine(
            self.weight.view(self.grouped_shape), self.weight_scale, self.weight_zero_point,
            axis=0, quant_min=-self.highest - 1, quant_max=self.highest,
        )  # fmt: skip
        return grouped.view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.quantize_input:
            x = torch.fake_quantize_per_tensor_affine(x, self.input_scale, self.input_zero_point, quant_min=0, quant_max=255)
        # The weight lies on its grid, so that rounding changes nothing; only the exported graph has to hold the grid.
        weight = self.quantized_weight() if torch.jit.is_tracing() else self.weight
        return F.linear(x, weight, self.bias)


def quantized_linears(model: GPT2LMHeadModel) -> dict[str, FakeQuantLinear]:
    """Return the quantized layers of a fake-quantized model by name; the head once, though the embedding holds it too."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, FakeQuantLinear) and ".wte." not in name}


class TiedEmbedding(nn.Module):
    """Token embedding that looks up in the head's INT8 weight, so that one tensor serves both."""

    def __init__(self, head: FakeQuantLinear):
        super().__init__()
        self.head = head

    def forward(self, input_ids: Tensor) -> Tensor:
        weight = self.head.quantized_weight() if torch.jit.is_tracing() else self.head.weight
        return F.embedding(input_ids, weight)


def linearize(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Return an FP32 copy whose `Conv1D` projections are `nn.Linear` layers, the only kind that INC quantizes.

    What its blocks add to the residual stream has no mean over the channels. Every LayerNorm would subtract that, so the answers stay the
    same, and a graph may leave the subtraction out (SliceGPT, Ashkboos et al. 2024, section 3.2).
    The embeddings of an FP32 model are shared with the copy, not doubled; replace them, don't write into them.
    """
    import copy

    embeddings = [module.weight for module in (model.transformer.wte, model.transformer.wpe)]
    shared = {id(weight): nn.Parameter(weight.detach().float().cpu()) for weight in embeddings}
    model = copy.deepcopy(model, shared).float().cpu().eval()
    fold_attention_scale(model)
    model.set_attn_implementation("sdpa")  # what OpenVINO finds in the graph as one operation; a model may come with eager attention
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                setattr(module, name, _as_linear(child))
    for block in model.transformer.h:
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            projection.weight = nn.Parameter(projection.weight - projection.weight.mean(0))
            projection.bias = nn.Parameter(projection.bias - projection.bias.mean())
    return model


def _as_linear(projection: Conv1D) -> nn.Linear:
    inputs, outputs = projection.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(projection.weight.detach().T.contiguous())
    linear.bias = nn.Parameter(projection.bias.detach())
    return linear


def fake_quantize(model: GPT2LMHeadModel, quantized: Mapping[str, QuantizedLinear]) -> GPT2LMHeadModel:
    """Replace, in place, each of these Linears of a linearized model; tie the embedding to the head where it was tied before."""
    tied = model.lm_head.weight is model.transformer.wte.weight
    for name, found in quantized.items():
        linear = model.get_submodule(name)
        model.set_submodule(name, FakeQuantLinear(found, linear.bias))
    if tied and isinstance(model.lm_head, FakeQuantLinear):
        model.transformer.wte = TiedEmbedding(model.lm_head)
    return model


def heads_per_layer(model: GPT2LMHeadModel) -> int:
    """Return the number of heads that every layer kept.

    Raises:
        ValueError: layers kept different numbers; the exporter gives all KV caches one shape.
    """
    kept = {block.attn.num_heads for block in model.transformer.h}
    if len(kept) != 1:
        raise ValueError(f"layers kept {sorted(kept)} heads; the exporter needs the same number in each: prune one fraction everywhere")
    return kept.pop()


def export_ir(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path, kv_cache: str = "f16") -> Path:
    """Write `model` as stateful IR with its KV cache, config, tokenizer and manifest; return `out_dir`.

    Weights behind a fake-quantizer are stored as integers. The directory appears whole or not at all.

    Args:
        model: FP32 GPT-2, fake-quantized or not; heads may be pruned, the same number in every layer.
        out_dir: a new or empty folder, or one that was written here before.
        kv_cache: what `load_ir` is to keep keys and values in, `f16` or `u8`; of a float model it is `f32`.

    Raises:
        ValueError: a weight is NaN or infinite, layers kept different numbers of heads, or `out_dir` can't be written.
    """
    check_finite(model)
    out_dir = Path(out_dir)
    with new_folder(out_dir) as partial:
        write_ir(model, tokenizer, partial, kv_cache)
    return out_dir


def write_ir(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, folder: Path, kv_cache: str) -> None:
    """Write what `export_ir` does into an empty folder."""
    from openvino import Core, save_model
    from openvino._offline_transformations import compress_quantize_weights_transformation
    from optimum.exporters.openvino import export_from_model
    from optimum.exporters.openvino.model_configs import GPT2OpenVINOConfig

    linears = quantized_linears(model)
    with tempfile.TemporaryDirectory(dir=folder) as exported:
        export_from_model(
            model, exported, task="text-generation-with-past", stateful=True, preprocessors=[tokenizer],
            custom_export_configs={"model": kept_heads_config(model, GPT2OpenVINOConfig)},
        )  # fmt: skip
        graph = Core().read_model(Path(exported, IR_NAME))
        if linears:
            compress_quantize_weights_transformation(graph)
            graphs.group_scales(graph)
            graphs.halve_positions(graph)
        shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("openvino_model.*"), dirs_exist_ok=True)
        save_model(graph, folder / IR_NAME, compress_to_fp16=False)
        bits = {8 if linear.highest == 127 else 4 for name, linear in linears.items() if name != "lm_head"}
        write_manifest(folder, *((f"i{min(bits)}", kv_cache) if bits else ("f32", "f32")))


def kept_heads_config(model: GPT2LMHeadModel, base: type):
    """Build an export config of a kind whose KV shapes follow the heads that are left; `config.n_head` still counts the pruned ones.

    Args:
        model: the GPT-2 that is exported.
        base: optimum's config of GPT-2 for an exporter, `GPT2OpenVINOConfig` or `GPT2OnnxConfig`.
    """
    from optimum.utils import NormalizedTextConfig

    heads, head_dim = heads_per_layer(model), model.transformer.h[0].attn.head_dim

    class KeptHeads(NormalizedTextConfig):
        NUM_LAYERS = "n_layer"
        num_attention_heads = heads
        hidden_size = heads * head_dim

    class KeptHeadsConfig(base):
        NORMALIZED_CONFIG_CLASS = KeptHeads

    return KeptHeadsConfig(model.config, task="text-generation", use_past=True, use_past_in_inputs=True)
