"""What each way of quantizing costs, on a model as it comes and on one with injected activation outliers."""

import copy
import dataclasses
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2LMHeadModel

from experiments.contract import Experiment, columns, say
from gpt2opt import environment
from gpt2opt.environment import machine_label
from gpt2opt.measure.quality import Logits, ScoredText, measure_agreement, perplexity
from gpt2opt.measure.results import Agreement, Quality
from gpt2opt.measure.stats import PERCENT
from gpt2opt.quantize.fake_quant import fake_quantize
from gpt2opt.quantize.inc import calibrate
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.quantize.recipes import RECIPES
from gpt2opt.report.tables import Table, megabytes, perplexity_ratio, table, with_interval
from gpt2opt.run.measurements import make_workload
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import IR_WEIGHTS
from gpt2opt.settings import Settings
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.sources.texts import find_texts
from gpt2opt.torch_model import logits_of


@torch.no_grad()
def inject_outliers(linear: GPT2LMHeadModel, k: float = 64, share: float = 0.01) -> GPT2LMHeadModel:
    """Multiply a share of the channels of every LayerNorm by k and divide the weights that read them: the same function with outliers.

    Large GPT-2s have such channels by themselves; SmoothQuant (Xiao et al. 2022) was made for them. The model, from `prepare_for_export`,
    is changed in place; its head is no longer tied to its embedding.
    """
    generator = torch.Generator().manual_seed(0)
    blocks: Any = linear.transformer.h
    pairs = [(getattr(b, norm), layer) for b in blocks for norm, layer in (("ln_1", b.attn.c_attn), ("ln_2", b.mlp.c_fc))]
    for norm, projection in [*pairs, (linear.transformer.ln_f, linear.lm_head)]:
        width = len(norm.weight)
        channels = torch.randperm(width, generator=generator)[: max(1, round(share * width))]
        factor = torch.ones(width)
        factor[channels] = k
        norm.weight, norm.bias = nn.Parameter(norm.weight * factor), nn.Parameter(norm.bias * factor)
        projection.weight = nn.Parameter(projection.weight / factor)
    return linear


SAFE_SUMS = (
    "Whatever CPU quantizes, weights get steps with which sums fit into 16 bits, so that a CPU without VNNI or AMX can run what another "
    "one wrote. What that costs where nothing saturates, by the default recipe without its gate"
)
NAIVE = RECIPES["w8a8-naive"]
COMPARED = {
    "min-max": NAIVE,
    "KL": dataclasses.replace(NAIVE, activation_range="kl"),
    "percentile 99.99": dataclasses.replace(NAIVE, activation_range="percentile"),
    "SmoothQuant 0.8": dataclasses.replace(NAIVE, smooth_alpha=0.8),
    "w8a8 (default)": RECIPES["w8a8"],
    "w8": RECIPES["w8"],
    "w4": RECIPES["w4"],
}


@dataclass(frozen=True)
class RecipeResult:
    """One recipe on one model, measured through the IR it gave. seconds: of quantization, export and audit included."""

    model: str
    recipe: str
    quality: Quality
    agreement: Agreement
    float_inputs: tuple[str, ...]
    bin_bytes: int
    seconds: float


@dataclass(frozen=True)
class SafeSums:
    """What it costs that weights are safe on CPUs which add INT8 products in 16 bits; see `keep_sums_in_16_bits`.

    Both are computed in floats, which never saturate, on any CPU: unsafe with the steps that INC chose, safe with the wider ones.
    """

    model: str
    unsafe: Agreement
    safe: Agreement


@dataclass(frozen=True)
class RecipeComparison:
    """All of them, with the FP32 model they are compared with; both models are the same function, so it is one.

    safe_sums: by the default recipe without its gate, on each of the two models.
    """

    environment: dict[str, Any]
    model: str
    reference: Quality
    results: tuple[RecipeResult, ...]
    safe_sums: tuple[SafeSums, ...]
    schema: str = "gpt2opt.recipes/3"


def compare_recipes(model: str = "auto", text: str = "auto", score_bytes: int = 100_000, calibration_rows: int = 32) -> RecipeComparison:
    """Quantize a model by every recipe, as it comes and with injected outliers, and score each result on held-out text.

    Raises:
        ValueError: a source can't be found or is too short.
    """
    found, texts = find_model(model), find_texts(text)
    tokenizer, easy = load_model(found.path)
    calibration = prepare_calibration_dataset([d.text for d in texts.calibration], tokenizer, limit=calibration_rows)
    scored = make_workload(tokenizer, texts, Settings(score_bytes=score_bytes)).scored
    reference = logits_of(easy)
    expected = perplexity(reference, scored)
    results = []
    models = {"as it comes": prepare_for_export(easy), "injected outliers": inject_outliers(prepare_for_export(easy))}
    for (name, linear), (recipe_name, recipe) in itertools.product(models.items(), COMPARED.items()):
        say(f"{name}: {recipe_name} …")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "ir")
            start = time.perf_counter()
            done = quantize_int8(linear, tokenizer, calibration, folder, recipe)
            seconds = time.perf_counter() - start
            measured = measure_agreement(logits_of(load_ir(folder)), reference, scored, reference_name="FP32")
            size = (folder / IR_WEIGHTS).stat().st_size
            results.append(RecipeResult(name, recipe_name, *measured, done.audit.float_inputs, size, seconds))
    say("weights with and without room for sums of 16 bits …")
    safe_sums = tuple(
        SafeSums(name, *(_agreement_in_floats(linear, calibration, safe, reference, scored) for safe in (False, True)))
        for name, linear in models.items()
    )
    return RecipeComparison(environment.describe(), str(found), expected, tuple(results), safe_sums)


def _agreement_in_floats(linear: GPT2LMHeadModel, calibration: Dataset, safe: bool, reference: Logits, scored: ScoredText) -> Agreement:
    """Score the fake-quantized model with INC's steps or with safe ones, every block input quantized."""
    model = copy.deepcopy(linear)
    fake_quantize(model, calibrate(model, calibration, RECIPES["w8a8"], safe_sums=safe))
    return measure_agreement(logits_of(model), reference, scored, reference_name="FP32")[1]


def recipes_table(comparison: RecipeComparison) -> Table:
    """Show every recipe on both models, with intervals over documents."""
    return columns(
        comparison.results,
        {
            "model": lambda result: result.model,
            "recipe": lambda result: result.recipe,
            "perplexity / FP32": lambda result: perplexity_ratio(result.quality, comparison.reference),
            "mean KL, nats": lambda result: with_interval(result.agreement.mean_kl, result.agreement.mean_kl_interval(), ".4f"),
            "same top token": lambda result: with_interval(result.agreement.top1, result.agreement.top1_interval(), ".1%"),
            "float inputs": lambda result: str(len(result.float_inputs)),
            "bin MB": lambda result: megabytes(result.bin_bytes),
            "s": lambda result: f"{result.seconds:.0f}",
        },
    )


def safe_sums_table(comparison: RecipeComparison) -> Table:
    """Show what weights that are safe for sums of 16 bits cost where nothing saturates, with intervals over documents."""
    rows = []
    for found in comparison.safe_sums:
        divergence = [with_interval(each.mean_kl, each.mean_kl_interval(), ".5f") for each in (found.unsafe, found.safe)]
        agreement = [with_interval(each.top1, each.top1_interval(), ".2%") for each in (found.unsafe, found.safe)]
        rows.append((found.model, *divergence, *agreement))
    measured = ("mean KL, nats: steps of INC", "mean KL: safe steps", "same top token: steps of INC", "same top token: safe steps")
    return table(("model", *measured), rows)


def recipes_caption(comparison: RecipeComparison) -> str:
    """Say what the table was taken on."""
    return (
        f"{comparison.model}; {machine_label(comparison.environment)}; {comparison.reference.protocol}, perplexity of the FP32 model "
        f"{comparison.reference.perplexity:.2f}. Intervals are {PERCENT}, over documents. All figures are those of the IR, read with "
        "quantized inputs."
    )


EXPERIMENT = Experiment(
    RecipeComparison,
    compare_recipes,
    tables=lambda found: {"Every recipe on both models": recipes_table(found), SAFE_SUMS: safe_sums_table(found)},
    charts=lambda _: {},
    caption=recipes_caption,
)
