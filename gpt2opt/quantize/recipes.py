"""Recipes: the choices that quantize a model, and the configuration that INC gets for them."""

from dataclasses import dataclass
from typing import Any

from gpt2opt.settings import is_number, is_whole

RANGES = ("minmax", "kl", "percentile")


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    weight_bits: 8 or 4, of the block matmuls. The head, which is also the token embedding, is always in INT8.
    group_size: inputs that share a weight scale; None: one scale per output channel.
    activations: whether the inputs of matmuls are quantized, u8 per tensor, as far as the gate lets them be.
    smooth_alpha: how far SmoothQuant moves the range of an activation into the weights, from 0 to 1 (Xiao et al. 2022); None: not at all.
    activation_range: `minmax`, `kl` (both INC's) or `percentile`, see `clip_to_percentiles`.
    head_input: whether the head's input is quantized too. The head reads one row per sequence, so that this gains nothing and costs most.
    max_kl: the KL budget: nats per token that all quantized activations together may cost; None: no gate. See `quantize.gate`.

    The defaults were chosen on the bundled model: quantized, it predicts the same token as in FP32 on at least 97% of the positions, even
    with injected activation outliers. `experiments/recipes.py` compares them with others.
    """

    weight_bits: int = 8
    group_size: int | None = None
    activations: bool = True
    smooth_alpha: float | None = 0.8
    activation_range: str = "minmax"
    head_input: bool = False
    max_kl: float | None = 0.0008

    def __post_init__(self) -> None:
        """Raise ValueError, in one line, for a choice that no model can be quantized by."""
        for name, right, expected in (
            ("weight_bits", is_whole(self.weight_bits, 4) and self.weight_bits in (4, 8), "8 or 4"),
            ("group_size", self.group_size is None or is_whole(self.group_size, 1), "a whole number of at least 1, or None"),
            ("smooth_alpha", self.smooth_alpha is None or is_number(self.smooth_alpha, 0, 1), "a number from 0 to 1, or None"),
            ("activation_range", self.activation_range in RANGES, f"one of {', '.join(RANGES)}"),
            ("max_kl", self.max_kl is None or is_number(self.max_kl, 0), "a number of at least 0, or None"),
        ):
            if not right:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected {expected}")


RECIPES = {
    "w8a8": Recipe(),
    "w8a8-naive": Recipe(smooth_alpha=None, head_input=True, max_kl=None),
    "w8": Recipe(activations=False),
    "w4": Recipe(weight_bits=4, group_size=64, activations=False),
}


def int8_config(recipe: Recipe) -> Any:
    """Return INC's configuration: INT8 weights per channel and u8 inputs per tensor of every Linear, smoothed as the recipe says."""
    from neural_compressor.config import PostTrainingQuantConfig

    smooth = {"smooth_quant": True, "smooth_quant_args": {"alpha": recipe.smooth_alpha, "folding": True}}
    algorithm = "kl" if recipe.activation_range == "kl" else "minmax"
    # The token embedding shares the head's INT8 tensor in the exported graph; positions stay as they are.
    embedding = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
    return PostTrainingQuantConfig(
        approach="static",
        excluded_precisions=["bf16"],  # otherwise a CPU with bf16 arithmetic could get other weights than one without
        recipes=smooth if recipe.smooth_alpha is not None else {},
        op_type_dict={"Linear": {"activation": {"algorithm": [algorithm]}}, "Embedding": embedding},
    )
