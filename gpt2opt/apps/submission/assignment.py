"""The steps of the assignment, parts 1 to 4: evidence for each in the code of the notebook and, where there is one, in the record.

The code is evidence that a step is there; the record, that it was measured, and with what values. A function that the notebook defines and
leaves empty counts for nothing.
"""

import ast
import re
from collections.abc import Callable

from gpt2opt.apps.submission.evidence import NotMetError, Submission, measured, number
from gpt2opt.run.record import PROFILE, PRUNE, QUANTIZE, Measurement, Settings

SHOWN = r"(?!plot|show|conclude|test)"
LATENCY = rf"{SHOWN}.*latency.*|perf_counter(_ns)?|time|default_timer|timeit|measure"
PERPLEXITY = rf"{SHOWN}.*(perplexity|ppl).*|measure"
VRAM = rf"max_memory_\w+|memory_allocated|mem_get_info|{SHOWN}.*vram.*|measure"
RAM = rf"memory_info|virtual_memory|getrusage|{SHOWN}(.*_)?(ram|rss)(_.*)?|measure"
PRUNING = "prune_attention_heads"
FP16 = r"\bhalf\b|\bfloat16\b"
IR_BY = re.compile(r"OVModel|^(ov|openvino)\.save_model")
PRUNE_FRACTION, EPOCHS = 0.2, (1, 5)

Calls = list[tuple[int, ast.Call]]


def calls(names: str, missing: str, of_record: Callable[[Measurement], str] | None = None) -> Callable[[Submission], str]:
    """Return a point that is met by a call of a function; of_record: says what the record has of the first model."""

    def find(s: Submission) -> str:
        found = _found(s.code.calls(names), missing)
        return f"{found}; {of_record(measured(s.record, PROFILE))} in the record" if s.record and of_record else found

    return find


def _found(calls: Calls, missing: str) -> str:
    if not calls:
        raise NotMetError(missing)
    return number(sorted({cell for cell, _ in calls}))


def perplexity_of(model: Measurement) -> str:
    if model.quality is None:
        raise NotMetError("the record has no perplexity of the first model; measure it with run.measure")
    return f"{model.quality.perplexity:.2f}"


def memory_of(model: Measurement) -> str:
    if (memory := model.memory) is None:
        raise NotMetError("the record has no memory of the first model; measure it with run.measure")
    if memory.peak_vram_bytes is not None:
        return f"{memory.peak_vram_bytes / 1e6:.0f} MB of VRAM"
    return "no GPU" + ("" if memory.peak_rss_bytes is None else f", {memory.peak_rss_bytes / 1e6:.0f} MB of RAM")


def fp16_model(s: Submission) -> str:
    loads = s.code.calls("load_fp16_model|from_pretrained")
    _found(loads, "no call of load_fp16_model or from_pretrained that does anything")
    first = loads[0][0]
    ours = "load_fp16_model" not in s.code.functions and s.code.calls("load_fp16_model")  # imported, so it does what it says
    if not ours and not _cells_with(s, FP16, range(first, max(first + 1, _first(s, s.code.calls(PRUNING))))):
        raise NotMetError("the model is not loaded in FP16: no float16 or half() between from_pretrained and prune_attention_heads")
    return _in_fp16(s, PROFILE, "first", first)


def recast_to_fp16(s: Submission) -> str:
    after = _cells_with(s, FP16, range(_first(s, s.code.calls(PRUNING)), len(s.cells)))
    if not after:
        missing = "no half() or float16 in the cells from prune_attention_heads on"
        raise NotMetError(f"{missing}; cutting makes new matrices, so cast the model again")
    return _in_fp16(s, PRUNE, "pruned", after[0])


def _in_fp16(s: Submission, stage: str, model: str, cell: int) -> str:
    if s.record and (dtype := measured(s.record, stage).dtype) != "float16":
        raise NotMetError(f"the record says that the {model} model was {dtype}, expected float16")
    return number([cell])


def prune_heads(s: Submission) -> str:
    found = _found(s.code.calls(PRUNING), "prune_attention_heads is not called, or is still empty")
    fraction = s.record.settings.prune_fraction if s.record else _fraction_in_the_code(s)
    if s.record:
        removed = {layer: len(heads) for layer, heads in measured(s.record, PRUNE).facts.get("pruned_heads", {}).items()}
        if len(set(removed.values())) != 1:
            raise NotMetError(f"the record has the pruned heads of each layer as {removed}, expected the same number in every layer")
        found += f"; {next(iter(removed.values()))} heads of each of {len(removed)} layers in the record"
    if fraction is None:
        raise NotMetError("nothing says how many heads are pruned; give prune_attention_heads prune_fraction=0.2")
    if fraction != PRUNE_FRACTION:
        raise NotMetError(f"prune_fraction is {fraction}, expected {PRUNE_FRACTION}: 20% of the heads of every layer")
    return f"{found}, prune_fraction={fraction}"


def _fraction_in_the_code(s: Submission) -> float | None:
    found = [call for _, call in s.code.calls(PRUNING)]
    given = [*s.code.settings("prune_fraction"), *(call.args[1] for call in found if len(call.args) > 1)]
    by_default = Settings.prune_fraction if not given and any(call in s.code.library for call in found) else None
    return next((value for node in given if (value := s.code.value(node)) is not None), by_default)


def measured_again(s: Submission) -> str:
    pruned = _first(s, s.code.calls(PRUNING))
    cells = range(pruned, max(min(pruned + 1, len(s.cells)), _first(s, _quantizing(s))))
    return _all_measured(s, PRUNE, cells, {"latency": LATENCY, "perplexity": PERPLEXITY, "VRAM": f"{VRAM}|{RAM}"})


def on_the_cpu(s: Submission) -> str:
    cells = range(_first(s, _quantizing(s)), len(s.cells))
    return _all_measured(s, QUANTIZE, cells, {"latency": LATENCY, "RAM": RAM, "perplexity": PERPLEXITY})


def _all_measured(s: Submission, stage: str, cells: range, figures: dict[str, str]) -> str:
    """Say that the figures were measured: in a stage of the record, or by calls in some of the cells."""
    if s.record:
        found = measured(s.record, stage)
        values = {"latency": found.latency, "perplexity": found.quality, "VRAM": found.memory, "RAM": found.memory}
        lacking = [figure for figure in figures if values[figure] is None]
        where = f"the record of {found.name}, on {found.device}"
    else:
        lacking = [figure for figure, names in figures.items() if not s.code.calls(names, cells)]
        where = f"calls in code cells {cells.start + 1} to {cells.stop}" if cells else "any cell, since none does that step"
    if lacking:
        raise NotMetError(f"{', '.join(lacking)}: not in {where}")
    return f"{', '.join(figures)}: {where}"


def padding(s: Submission) -> str:
    found = s.code.calls("prepare_tokenizer_for_padding")
    if not found and (s.code.settings("pad_token") or s.code.settings("pad_token_id")):
        return "pad_token is set"
    missing = "pad_token is not set, and prepare_tokenizer_for_padding is not called or still empty; GPT-2 has no padding token"
    return _found(found, missing)


def training(s: Submission) -> str:
    first = []
    for names in ("TrainingArguments|create_training_arguments", "Trainer|run_fine_tuning"):
        found = s.code.calls(names)
        _found(found, f"{names.partition('|')[0]} is not called, or only in a function that is still empty")
        first += found[:1]
    return _found(first, "")


def epochs(s: Submission) -> str:
    count, where = (s.record.settings.epochs, "in the record") if s.record else _epochs_in_the_code(s)
    least, most = EPOCHS
    if not least <= count <= most:
        raise NotMetError(f"{count:g} epochs {where}, expected {least} to {most}")
    return f"{count:g} {where}"


def _epochs_in_the_code(s: Submission) -> tuple[float, str]:
    given = [*s.code.settings("num_train_epochs"), *s.code.settings("epochs")]
    if numbers := [value for node in given if isinstance(value := s.code.value(node), int | float)]:
        return numbers[0], "in the code"
    if logged := re.findall(r"'epoch': ([\d.]+)", s.text):
        return float(logged[-1]), "in the outputs"
    if given or not s.code.calls("TrainingArguments|create_training_arguments"):
        raise NotMetError("no number of epochs is to be found; give TrainingArguments num_train_epochs as a number")
    if s.code.calls("TrainingArguments"):
        return 3, "by default of TrainingArguments"
    return Settings.epochs, "by default of create_training_arguments"


def inc_quantizer(s: Submission) -> str:
    made, quantizing = _quantizers(s), s.code.calls("quantize")
    found = [*made, *quantizing] if made and quantizing else s.code.calls("quantize_int8")
    return _found(found, "no INCQuantizer whose quantize() is called, and no call of gpt2opt.quantize_int8")


def _quantizers(s: Submission) -> Calls:
    return [found for found in s.code.calls("INCQuantizer|from_pretrained") if "INCQuantizer" in ast.unparse(found[1].func)]


def _quantizing(s: Submission) -> Calls:
    return [*_quantizers(s), *s.code.calls("quantize_int8")]


def calibration(s: Submission) -> str:
    if found := s.code.calls("prepare_calibration_dataset"):
        return _found(found, "")
    cells = _cells_with(s, "calib", range(len(s.cells)))
    steps = {
        "filtered": any(_filters(s.code.cells[cell]) for cell in cells),
        "tokenized": any(re.search(r"tokeniz", s.code.words(cell)) for cell in cells),
    }
    if lacking := [step for step, done in steps.items() if not done]:
        missing = f"no calibration set that is {' and '.join(lacking)}"
        raise NotMetError(f"{missing}; prepare_calibration_dataset is not called, or is still empty")
    return number(cells[:1])


def _filters(tree: ast.Module) -> bool:
    """Say whether rows are left out: by `filter`, or by a condition in a comprehension."""
    nodes = list(ast.walk(tree))
    by_name = any(getattr(node, "attr", getattr(node, "id", "")) == "filter" for node in nodes)
    return by_name or any(isinstance(node, ast.comprehension) and node.ifs for node in nodes)


def openvino_ir(s: Submission) -> str:
    exports = s.code.calls("export_ir|quantize_int8|main_export|export_from_model")
    exports += [found for found in s.code.calls("from_pretrained|save_model") if IR_BY.search(ast.unparse(found[1].func))]
    missing = "no export: INCQuantizer.quantize writes weights for PyTorch, not IR; gpt2opt.export_ir, OVModelForCausalLM(export=True) do"
    return _found(exports, missing)


def _first(s: Submission, found: Calls) -> int:
    """Return the first cell of some calls."""
    return min((cell for cell, _ in found), default=len(s.cells))


def _cells_with(s: Submission, pattern: str, cells: range) -> list[int]:
    return [cell for cell in cells if re.search(pattern, s.code.words(cell))]
