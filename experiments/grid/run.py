"""GPT-2 on movie reviews, pruned and quantized in every combination: what each costs in loss, and what it gains in size and time."""

import copy
import dataclasses
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any

from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel

from experiments.contract import now, say
from experiments.grid.results import AFTER, BEFORE, DENSE, FP32, INT8, Cell, Control, Grid, Linears, Tuning
from experiments.grid.reviews import find_reviews
from experiments.grid.sparsity import (
    LINEARS,
    RULES,
    Rule,
    count_zeros,
    export_fp32,
    held_at_zero,
    masks_of,
    prune_integers,
    prune_linears,
)
from experiments.pruning import fine_tuned
from gpt2opt import environment
from gpt2opt.finetune import prepare_tokenizer_for_padding, tokenize_dataset
from gpt2opt.measure.memory import peak_ram
from gpt2opt.measure.quality import Logits, Protocol, ScoredText, perplexity, prepare_text, windows
from gpt2opt.measure.results import Quality
from gpt2opt.measure.turns import Contestants, Here, again
from gpt2opt.prune import head_importance, heads_to_prune, importance_batches, prune_attention_heads
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.runtime.ir_model import generate_from_ir, load_ir
from gpt2opt.settings import Settings, check_whole
from gpt2opt.sources.gpt2 import heads_per_layer
from gpt2opt.sources.models import FoundModel, find_model, load_model
from gpt2opt.sources.texts import Texts, take_bytes
from gpt2opt.storage import PREFIX, check_folder, claim_folder, new_folder, weight_files
from gpt2opt.torch_model import logits_of

HEAD_FRACTIONS = (1 / 6, 1 / 3)
REVIEW_CHARACTERS = 1_500
"""Documents that are scored are cut to about the length of a review, so that there are many of them, whatever the text is."""
WINDOW = 256
"""Tokens that are read at once, about a review: in training, calibration and scoring alike."""
NEW_TOKENS = 4


@dataclass(frozen=True)
class Material:
    """What the models of the grid have in common. batches: token ids (B, T) on which heads are chosen. rows: what is trained on."""

    tokenizer: Any
    settings: Settings
    batches: tuple[Tensor, ...]
    rows: Dataset
    calibration: Dataset
    scored: ScoredText


@dataclass(frozen=True)
class Made:
    """A cell before it is measured, and the folder with its IR."""

    sparsity: str
    precision: str
    order: str | None
    folder: Path


def run_grid(
    model: str = "auto",
    text: str = "auto",
    rounds: int = 3,
    epochs: float = Settings.epochs,
    train_bytes: int = 40_000,
    score_bytes: int = 16_000,
    keep: str = "",
    *,
    calibration_rows: int = 12,
) -> Grid:
    """Prune, fine-tune and quantize a model in every combination, and measure each as it was saved.

    Every sparsity gets the same short fine-tuning, its zeros held at zero, and is then written in FP32 and quantized. The integers of the
    dense INT8 model are pruned by magnitude too; they can't be tuned any more. A source that can't be found or is too short, a model with
    too few heads, or a number out of its range are a ValueError.

    Args:
        keep: the folder in which every model stays, each in a folder of its own; none stays if it is empty.
    """
    for name, value in (("rounds", rounds), ("train_bytes", train_bytes), ("score_bytes", score_bytes)):
        check_whole(name, value, 1)
    settings = Settings(epochs=epochs, fine_tune_bytes=train_bytes)
    if keep:
        check_folder(keep)
    found, texts = find_model(model), find_reviews(text)
    stand_ins = tuple(_stand_ins(found, texts))
    say("\n".join((f"model: {found}", f"text: {texts}", *stand_ins)))
    tokenizer, dense = load_model(found.path)
    prepare_tokenizer_for_padding(tokenizer, dense)
    fractions = _head_fractions(dense)
    material = _prepare(tokenizer, texts, settings, score_bytes, calibration_rows)
    with tempfile.TemporaryDirectory() as scratch:
        untuned = perplexity(logits_of(dense), material.scored)
        made, controls, linears = _make_all(dense, fractions, material, Path(scratch))
        if keep:
            _keep(made, Path(keep))
        quality, seconds = _score_and_time(made, material.scored, rounds)
        cells = tuple(_measure(one, quality[one.folder.name], seconds[one.folder.name], material.scored) for one in made)
    tuning = Tuning(settings.epochs, len(material.rows), len(material.rows[0]["input_ids"]))
    memory_bytes = sum(each.nbytes for each in (*dense.parameters(), *dense.buffers()))
    return Grid(
        now(), environment.describe(), str(found), f"{texts} {texts.revision}", stand_ins, tuning, memory_bytes, untuned, controls, cells,
        again_s=seconds[again(made[0].folder.name)], linears=linears,
    )  # fmt: skip


def _stand_ins(found: FoundModel, texts: Texts) -> Iterator[str]:
    """Yield a sentence for each source that replaces another one, with how to get the real one."""
    if found.stand_in:
        yield "The bundled GPT-2 is used instead of `gpt2`; online, `--model gpt2` takes the real one."
    if texts.stand_in:
        yield f"The {texts.name} is used instead of IMDB reviews; `--text imdb` gets these online, `--text FILE.csv` reads a CSV."


def _head_fractions(model: GPT2LMHeadModel) -> dict[str, float]:
    """Return the shares of each layer's heads that are removed, by names that say what share that is in whole heads."""
    heads = heads_per_layer(model)
    counts = {heads_to_prune(heads, fraction): fraction for fraction in HEAD_FRACTIONS}
    if 0 in counts or len(counts) < len(HEAD_FRACTIONS):
        raise ValueError(f"the model has {heads} heads per layer, expected at least 6: a sixth and a third of them are removed")
    return {f"heads {count / heads:.0%}": fraction for count, fraction in counts.items()}


def _prepare(tokenizer, texts: Texts, settings: Settings, score_bytes: int, calibration_rows: int) -> Material:
    tuning = [document.text for document in take_bytes(texts.fine_tune, settings.fine_tune_bytes)]
    length = min(WINDOW, tokenizer.model_max_length)
    reviews = [dataclasses.replace(document, text=document.text[:REVIEW_CHARACTERS]) for document in texts.score]
    cut = f"documents cut at {REVIEW_CHARACTERS:,} characters"
    label = f"{texts.name} {texts.revision}, first {score_bytes:,} bytes of the scored part, {cut}"
    return Material(
        tokenizer,
        settings,
        importance_batches(tuning, tokenizer, length),
        tokenize_dataset(Dataset.from_dict({"text": tuning}), tokenizer, length),
        prepare_calibration_dataset([document.text for document in texts.calibration], tokenizer, length, calibration_rows),
        prepare_text(tokenizer, [document.text for document in take_bytes(reviews, score_bytes)], label, Protocol("review", WINDOW)),
    )


def _keep(made: Sequence[Made], folder: Path) -> None:
    """Copy every model into a folder of its own, where `gpt2opt generate` and `gpt2opt perplexity` read it."""
    claim_folder(folder)
    for one in made:
        with new_folder(folder / re.sub(r"\W+", "-", one.folder.name.lower())) as place:
            shutil.copytree(one.folder, place, ignore=shutil.ignore_patterns(f"{PREFIX}*"), dirs_exist_ok=True)
    say(f"{len(made)} models are kept in {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.is_dir()))}")


def _make_all(
    dense: GPT2LMHeadModel, fractions: Mapping[str, float], material: Material, scratch: Path
) -> tuple[list[Made], tuple[Control, ...], Linears]:
    """Write every model of the grid into a folder of its own, and score the controls; say what pruning every `nn.Linear` reached."""
    importance = head_importance(dense, material.batches)
    made: list[Made] = []
    after: list[Made] = []  # made from the dense model once it is tuned
    controls: list[Control] = []
    for name in tqdm((DENSE, *fractions, *RULES), "fine-tuning, writing FP32 and INT8"):
        model = prune_attention_heads(copy.deepcopy(dense), fractions.get(name, 0), importance)
        masks = masks_of(model, RULES[name]) if name in RULES else {}
        with held_at_zero(model, masks):
            fine_tuned(model, material.tokenizer, material.rows, material.settings)
        made += _write(name, None if name == DENSE else BEFORE, model, masks, material, scratch)
        if name == DENSE:
            as_the_project = copy.deepcopy(model)
            linears = prune_linears(as_the_project)
            after += _write(LINEARS, BEFORE, as_the_project, {}, material, scratch)
            for sparsity, rule in RULES.items():
                after.append(Made(sparsity, INT8, AFTER, scratch / f"{INT8} {sparsity}"))
                both = (masks_of(model, rule), _prune_after(made[-1].folder, after[-1].folder, rule))
                controls.append(Control(sparsity, *(_score_pruned(model, keep, material.scored) for keep in both)))
    return made + after, tuple(controls), linears


def _write(
    sparsity: str, order: str | None, model: GPT2LMHeadModel, masks: Mapping[str, Tensor], material: Material, scratch: Path
) -> list[Made]:
    """Write a model in both precisions; order: of its INT8 form."""
    fp32, int8 = (scratch / f"{sparsity} {precision}" for precision in (FP32, INT8))
    export_fp32(model, material.tokenizer, fp32)
    _write_int8(model, masks, material, int8)
    return [Made(sparsity, FP32, None, fp32), Made(sparsity, INT8, order, int8)]


def _write_int8(model: GPT2LMHeadModel, masks: Mapping[str, Tensor], material: Material, folder: Path) -> None:
    """Quantize a model; then set the integers of pruned weights to zero again: `prepare_for_export` centers the projections."""
    if not masks:
        quantize_int8(model, material.tokenizer, material.calibration, folder)
        return
    centred = folder.with_name(f"{folder.name} centred")
    quantize_int8(model, material.tokenizer, material.calibration, centred)
    prune_integers(centred, folder, lambda name, _: masks[name])
    shutil.rmtree(centred)


def _prune_after(int8: Path, folder: Path, rule: Rule) -> dict[str, Tensor]:
    """Write a dense INT8 model with its smallest weights set to zero; return which weights stayed."""
    chosen = {}

    def keep(name: str, magnitudes: Tensor) -> Tensor:
        chosen[name] = rule(magnitudes)
        return chosen[name]

    prune_integers(int8, folder, keep)
    return chosen


def _score_pruned(model: GPT2LMHeadModel, masks: Mapping[str, Tensor], scored: ScoredText) -> Quality:
    pruned = copy.deepcopy(model)
    with held_at_zero(pruned, masks):
        return perplexity(logits_of(pruned), scored)


class Timed:
    """One model of the grid. All are in this process, which has torch loaded once."""

    def __init__(self, logits: Logits):
        self.logits = logits

    def seconds(self, window: Tensor) -> float:
        """Return the seconds of one forward pass."""
        return timeit(partial(self.logits, window), number=1)


def _score_and_time(
    made: Sequence[Made], scored: ScoredText, rounds: int
) -> tuple[dict[str, Quality], dict[str, tuple[tuple[float, ...], ...]]]:
    """Return, by the name of a model's folder, its quality on the text, and the seconds of its forward passes, by round and window.

    All models are in memory and read the windows in turns, so that a slow moment of the machine is slow for all.
    """
    models = {one.folder.name: logits_of(load_ir(one.folder)) for one in made}
    quality = {name: perplexity(logits, scored, batch_size=1) for name, logits in tqdm(models.items(), "scoring all models")}
    ids = scored.sequences[0][0]
    read = [ids[None, start:end] for start, end, _ in windows(len(ids), scored.window, scored.stride)]  # (1, T) each
    with Contestants({name: Here(Timed(logits)) for name, logits in models.items()}) as contestants:
        turns = contestants.take_turns("seconds", range(len(read)), rounds=rounds, arguments=lambda number, _: (read[number],))
        *_, outcome = tqdm(turns, "timing in turns", rounds + 1)
    return quality, {name: tuple(zip(*taken.values(), strict=True)) for name, taken in outcome.samples.items()}


def _measure(made: Made, quality: Quality, seconds: tuple[tuple[float, ...], ...], scored: ScoredText) -> Cell:
    say(f"size and memory of {made.folder.name}")
    files = [path.read_bytes() for path in weight_files(made.folder)]
    prompt = scored.sequences[0][0][: scored.window - NEW_TOKENS].tolist()
    compressed_bytes = sum(len(zlib.compress(file)) for file in files)
    peak_rss_bytes = peak_ram(generate_from_ir, str(made.folder), prompt, NEW_TOKENS)
    return Cell(
        made.sparsity, made.precision, made.order, quality, seconds, sum(map(len, files)), compressed_bytes, peak_rss_bytes,
        *count_zeros(made.folder),
    )  # fmt: skip
