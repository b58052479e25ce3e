"""The steps of the assignment, parts 1 to 4: evidence for each in the code of the notebook and, where there is one, in the record.

The code is evidence that a step is there; the record, that it was measured, and with what values. A function that the notebook defines and
leaves empty counts for nothing.
"""

import ast
import re

from gpt2opt.apps.submission.evidence import NotMetError, Submission, number
from gpt2opt.run.record import PROFILE, PRUNE, QUANTIZE, Measurement, Record, Settings

SHOWN = r"(?!plot|show|conclude|test)"
LATENCY = rf"{SHOWN}.*latency.*|perf_counter(_ns)?|time|default_timer|timeit|measure"
PERPLEXITY = rf"{SHOWN}.*(perplexity|ppl).*|measure"
VRAM = rf"max_memory_\w+|memory_allocated|mem_get_info|{SHOWN}.*vram.*|measure"
RAM = rf"memory_info|virtual_memory|getrusage|{SHOWN}(.*_)?(ram|rss)(_.*)?|measure"
PRUNING = "prune_attention_heads"
FP16 = r"\bhalf\b|\bfloat16\b"
IR_BY = re.compile(r"OVModel|^(ov|openvino)\.save_model")
PRUNE_FRACTION, EPOCHS = 0.2, (1, 5)


def fp16_model(s: Submission) -> str:
    loads = s.code.calls("load_fp16_model|from_pretrained")
    _found(loads, "no call of load_fp16_model or from_pretrained that does anything")
    first = loads[0][0]
    ours = "load_fp16_model" not in s.code.functions and s.code.calls("load_fp16_model")  # imported, so it does what it says
    if not ours and not _cells_with(s, FP16, range(first, max(first + 1, _first(s, PRUNING)))):
        raise NotMetError("the model is not loaded in FP16: no float16 or half() between from_pretrained and prune_attention_heads")
    if s.record and (dtype := _measured(s.record, PROFILE).dtype) != "float16":
        raise NotMetError(f"the record says that the first model was {dtype}, expected float16")
    return number([first])


def torch_profiler(s: Submission) -> str:
    calls = s.code.calls("profile|record_trace")
    return _found(calls, "no call of torch.profiler.profile; profile a few tokens, with an on_trace_ready that writes the trace")


def baseline_perplexity(s: Submission) -> str:
    found = _found(s.code.calls(PERPLEXITY), "no call of a function with `perplexity` or `ppl` in its name that does anything")
    if s.record:
        quality = _measured(s.record, PROFILE).quality
        if quality is None:
            raise NotMetError("the record has no perplexity of the first model; measure it with run.measure")
        found += f"; {quality.perplexity:.2f} in the record"
    return found


def baseline_vram(s: Submission) -> str:
    missing = "no call of torch.cuda.max_memory_allocated or gpt2opt.peak_vram; without a GPU, peak_vram says so"
    return _found(s.code.calls(VRAM), missing) + (f"; {_memory(_measured(s.record, PROFILE))} in the record" if s.record else "")


def prune_heads(s: Submission) -> str:
    found = _found(s.code.calls(PRUNING), "prune_attention_heads is not called, or is still empty")
    if s.record:
        fraction: float | None = s.record.settings.prune_fraction
        removed = {layer: len(heads) for layer, heads in _measured(s.record, PRUNE).facts.get("pruned_heads", {}).items()}
        if len(set(removed.values())) != 1:
            raise NotMetError(f"the record has the pruned heads of each layer as {removed}, expected the same number in every layer")
        found += f"; {next(iter(removed.values()))} heads of each of {len(removed)} layers in the record"
    else:
        fraction = _fraction_in_the_code(s)
        if fraction is None:
            raise NotMetError("nothing says how many heads are pruned; give prune_attention_heads prune_fraction=0.2")
    if fraction != PRUNE_FRACTION:
        raise NotMetError(f"prune_fraction is {fraction}, expected {PRUNE_FRACTION}: 20% of the heads of every layer")
    return f"{found}, prune_fraction={fraction}"


def _fraction_in_the_code(s: Submission) -> float | None:
    calls = [call for _, call in s.code.calls(PRUNING)]
    given = [*s.code.settings("prune_fraction"), *(call.args[1] for call in calls if len(call.args) > 1)]
    by_default = Settings.prune_fraction if not given and any(call in s.code.library for call in calls) else None
    return next((value for node in given if (value := s.code.value(node)) is not None), by_default)


def recast_to_fp16(s: Submission) -> str:
    after = _cells_with(s, FP16, range(_first(s, PRUNING), len(s.cells)))
    if not after:
        raise NotMetError(
            "no half() or float16 in the cells from prune_attention_heads on; cutting makes new matrices, so cast the model again"
        )
    if s.record and (dtype := _measured(s.record, PRUNE).dtype) != "float16":
        raise NotMetError(f"the record says that the pruned model was {dtype}, expected float16")
    return number(after[:1])


def measured_again(s: Submission) -> str:
    until = max(min(_first(s, PRUNING) + 1, len(s.cells)), _first_quantizing(s))
    return _all_measured(
        s, PRUNE, range(_first(s, PRUNING), until), {"latency": LATENCY, "perplexity": PERPLEXITY, "VRAM": f"{VRAM}|{RAM}"}
    )


def padding(s: Submission) -> str:
    calls = s.code.calls("prepare_tokenizer_for_padding")
    if calls:
        return _found(calls, "")
    if s.code.assigns("pad_token(_id)?") or s.code.settings("pad_token"):
        return "pad_token is set"
    raise NotMetError("pad_token is not set, and prepare_tokenizer_for_padding is not called or still empty; GPT-2 has no padding token")


def tokenizing(s: Submission) -> str:
    return _found(s.code.calls("tokenize_dataset"), "tokenize_dataset is not called, or is still empty")


def training(s: Submission) -> str:
    calls = [s.code.calls(name) for name in ("TrainingArguments|create_training_arguments", "Trainer|run_fine_tuning")]
    for name, found in zip(("TrainingArguments", "Trainer"), calls, strict=True):
        _found(found, f"{name} is not called, or only in a function that is still empty")
    return _found([found[0] for found in calls], "")


def epochs(s: Submission) -> str:
    if s.record:
        count, where = s.record.settings.epochs, "in the record"
    else:
        count, where = _epochs_in_the_code(s)
    least, most = EPOCHS
    if not least <= count <= most:
        raise NotMetError(f"{count:g} epochs {where}, expected {least} to {most}")
    return f"{count:g} {where}"


def _epochs_in_the_code(s: Submission) -> tuple[float, str]:
    given = [*s.code.settings("num_train_epochs"), *s.code.settings("epochs")]
    numbers = [value for node in given if isinstance(value := s.code.value(node), int | float)]
    if numbers:
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
    calls = [*made, *quantizing] if made and quantizing else s.code.calls("quantize_int8")
    return _found(calls, "no INCQuantizer whose quantize() is called, and no call of gpt2opt.quantize_int8")


def calibration(s: Submission) -> str:
    if calls := s.code.calls("prepare_calibration_dataset"):
        return _found(calls, "")
    cells = _cells_with(s, "calib")
    steps = {
        "filtered": any(_filters(s.code.cells[cell]) for cell in cells),
        "tokenized": any(re.search(r"tokeniz", s.code.words(cell)) for cell in cells),
    }
    if lacking := [step for step, done in steps.items() if not done]:
        raise NotMetError(
            f"no calibration set that is {' and '.join(lacking)}; prepare_calibration_dataset is not called, or is still empty"
        )
    return number(cells[:1])


def openvino_ir(s: Submission) -> str:
    exports = s.code.calls("export_ir|quantize_int8|main_export|export_from_model")
    exports += [found for found in s.code.calls("from_pretrained|save_model") if IR_BY.search(ast.unparse(found[1].func))]
    missing = "no export: INCQuantizer.quantize writes weights for PyTorch, not IR; gpt2opt.export_ir, OVModelForCausalLM(export=True) do"
    return _found(exports, missing)


def on_the_cpu(s: Submission) -> str:
    return _all_measured(s, QUANTIZE, range(_first_quantizing(s), len(s.cells)), {"latency": LATENCY, "RAM": RAM, "perplexity": PERPLEXITY})


def _all_measured(s: Submission, stage: str, cells: range, figures: dict[str, str]) -> str:
    """Say that the figures were measured: in a stage of the record, or by calls in some of the cells."""
    if s.record:
        found = _measured(s.record, stage)
        values = {"latency": found.latency, "perplexity": found.quality, "VRAM": found.memory, "RAM": found.memory}
        lacking = [figure for figure in figures if values[figure] is None]
        where = f"the record of {found.name}, on {found.device}"
    else:
        lacking = [figure for figure, names in figures.items() if not s.code.calls(names, cells)]
        where = f"calls in code cells {cells.start + 1} to {cells.stop}" if cells else "any cell, since none does that step"
    if lacking:
        raise NotMetError(f"{', '.join(lacking)}: not in {where}")
    return f"{', '.join(figures)}: {where}"


def _found(calls: list[tuple[int, ast.Call]], missing: str) -> str:
    if not calls:
        raise NotMetError(missing)
    return number(sorted({cell for cell, _ in calls}))


def _first(s: Submission, name: str) -> int:
    """Return the first cell that calls a function."""
    return min((cell for cell, _ in s.code.calls(name)), default=len(s.cells))


def _cells_with(s: Submission, pattern: str, cells: range | None = None) -> list[int]:
    return [cell for cell in (range(len(s.cells)) if cells is None else cells) if re.search(pattern, s.code.words(cell))]


def _quantizers(s: Submission) -> list[tuple[int, ast.Call]]:
    return [found for found in s.code.calls("INCQuantizer|from_pretrained") if "INCQuantizer" in ast.unparse(found[1].func)]


def _first_quantizing(s: Submission) -> int:
    return min((cell for cell, _ in (*_quantizers(s), *s.code.calls("quantize_int8"))), default=len(s.cells))


def _filters(tree: ast.Module) -> bool:
    """Say whether rows are left out: by `filter`, or by a condition in a comprehension."""
    nodes = list(ast.walk(tree))
    by_name = any(getattr(node, "attr", getattr(node, "id", "")) == "filter" for node in nodes)
    return by_name or any(isinstance(node, ast.comprehension) and node.ifs for node in nodes)


def _measured(record: Record, stage: str) -> Measurement:
    for result in record.stages:
        if result.name == stage:
            return result.measurement
    raise NotMetError(f"the record has no stage {stage}; run the notebook to its end")


def _memory(found: Measurement) -> str:
    memory = found.memory
    if memory is None:
        raise NotMetError("the record has no memory of the first model; measure it with run.measure")
    if memory.peak_vram_bytes is not None:
        return f"{memory.peak_vram_bytes / 1e6:.0f} MB of VRAM"
    return "no GPU" + ("" if memory.peak_rss_bytes is None else f", {memory.peak_rss_bytes / 1e6:.0f} MB of RAM")
