"""The steps of the assignment, parts 1 to 4: evidence for each in the code of the notebook.

The code is evidence that a step is there. Where there is a record, it has to show that the step was measured, and with what values.
"""

import ast
import re
from collections.abc import Callable, Iterable

from gpt2opt.apps.submission.evidence import NotMetError, Submission, number

SHOWN = r"(?!plot|show|conclude|test)"
LATENCY = rf"{SHOWN}.*latency.*|perf_counter(_ns)?|time|default_timer|timeit|measure"
PERPLEXITY = rf"{SHOWN}.*(perplexity|ppl).*|measure"
VRAM = rf"max_memory_\w+|memory_allocated|mem_get_info|{SHOWN}.*vram.*|measure"
RAM = rf"memory_info|virtual_memory|getrusage|{SHOWN}(.*_)?(ram|rss)(_.*)?|measure"
PRUNING = "prune_attention_heads"
IR_BY = re.compile(r"OVModel|^(ov|openvino)\.save_model")


def calls(names: str, missing: str) -> Callable[[Submission], str]:
    """Return a point that is met by a call of a function."""
    return lambda s: _found(s.code.where(names), missing)


def _found(cells: list[int], missing: str) -> str:
    if not cells:
        raise NotMetError(missing)
    return number(cells)


def recorded(find: Callable[[Submission], str], model: str, *parts: str, dtype: str = "") -> Callable[[Submission], str]:
    """Return a point that is met by the code and, where there is a record, by these parts of what it has of a model, and its dtype."""

    def look(s: Submission) -> str:
        found = find(s)
        if s.record is None:
            return found
        if model not in s.record.models:
            raise NotMetError(f"the record has no {model!r}; run the notebook to its end")
        measured = s.record.models[model]
        if lacking := [part for part in parts if getattr(measured, part) is None]:
            raise NotMetError(f"the record has no {', no '.join(lacking)} of {model!r}; measure it with run.measure")
        if dtype and measured.dtype != dtype:
            raise NotMetError(f"the record says that {model!r} was {measured.dtype}, expected {dtype}")
        return f"{found}; {', '.join(parts) or dtype} of {model!r} in the record"

    return look


def fp16_model(s: Submission) -> str:
    loaded = s.code.where("from_pretrained")
    _found(loaded, "no call of load_fp16_model or from_pretrained that does anything")
    cells = range(loaded[0], max(loaded[0] + 1, _first(s, s.code.where(PRUNING))))
    return _in_fp16(s, cells, "the model is not loaded in FP16: no float16 or half() between from_pretrained and prune_attention_heads")


def recast_to_fp16(s: Submission) -> str:
    missing = "no half() or float16 in the cells from prune_attention_heads on; cutting makes new matrices, so cast the model again"
    return _in_fp16(s, range(_first(s, s.code.where(PRUNING)), len(s.cells)), missing)


def _in_fp16(s: Submission, cells: range, missing: str) -> str:
    return _found(_cells_with(s, r"\bhalf\b|\bfloat16\b", cells)[:1], missing)


def prune_heads(s: Submission) -> str:
    where = _found(s.code.where(PRUNING), "prune_attention_heads is not called, or is still empty")
    given = [*s.code.settings("prune_fraction"), *(call.args[1] for _, call in s.code.calls(PRUNING) if len(call.args) > 1)]
    fraction = s.record.settings.prune_fraction if s.record else _constant(s, given, None if PRUNING in s.code.functions else 0.2)
    if fraction is None:
        raise NotMetError("nothing says how many heads are pruned; give prune_attention_heads prune_fraction=0.2")
    pruned = s.record.models.get("Pruned") if s.record else None
    removed = {layer: len(heads) for layer, heads in pruned.facts.get("pruned_heads", {}).items()} if pruned else {}
    if pruned and len(set(removed.values())) != 1:
        raise NotMetError(f"the record has the pruned heads of each layer as {removed}, expected the same number in every layer")
    if fraction != 0.2:
        raise NotMetError(f"prune_fraction is {fraction}, expected 0.2: 20% of the heads of every layer")
    return f"{where}, prune_fraction={fraction}"


def epochs(s: Submission) -> str:
    given = [*s.code.settings("num_train_epochs"), *s.code.settings("epochs")]
    count = s.record.settings.epochs if s.record else _constant(s, given, 3 if s.code.where("TrainingArguments") else None)
    if count is None:
        raise NotMetError("no number of epochs is to be found; give TrainingArguments num_train_epochs as a number")
    if not 1 <= count <= 5:
        raise NotMetError(f"{count:g} epochs, expected 1 to 5")
    return f"{count:g} epochs"


def _constant(s: Submission, given: list[ast.expr], by_default: float | None) -> float | None:
    """Return the first number among the expressions that give a setting, or what holds by default where there are none."""
    numbers = (value for node in given if isinstance(value := s.code.value(node), int | float))
    return next(numbers, None) if given else by_default


def measured_again(s: Submission) -> str:
    pruned = _first(s, s.code.where(PRUNING))
    cells = range(pruned, max(min(pruned + 1, len(s.cells)), _first(s, _quantizing(s))))
    return _all_measured(s, cells, {"latency": LATENCY, "perplexity": PERPLEXITY, "VRAM": f"{VRAM}|{RAM}"})


def on_the_cpu(s: Submission) -> str:
    cells = range(_first(s, _quantizing(s)), len(s.cells))
    return _all_measured(s, cells, {"latency": LATENCY, "RAM": RAM, "perplexity": PERPLEXITY})


def _all_measured(s: Submission, cells: range, figures: dict[str, str]) -> str:
    where = f"calls in code cells {cells.start + 1} to {cells.stop}" if cells else "any cell, since none does that step"
    if lacking := [figure for figure, names in figures.items() if not s.code.where(names, cells)]:
        raise NotMetError(f"{', '.join(lacking)}: not in {where}")
    return f"{', '.join(figures)}: {where}"


def padding(s: Submission) -> str:
    if s.code.settings("pad_token") or s.code.settings("pad_token_id"):
        return "pad_token is set"
    missing = "pad_token is not set, and prepare_tokenizer_for_padding is not called or still empty; GPT-2 has no padding token"
    return _found(s.code.where("prepare_tokenizer_for_padding"), missing)


def training(s: Submission) -> str:
    for name in ("TrainingArguments", "Trainer"):
        found = _found(s.code.where(name)[:1], f"{name} is not called, or only in a function that is still empty")
    return found


def inc_quantizer(s: Submission) -> str:
    found = _quantizing(s) if s.code.where("quantize|quantize_int8") else []
    return _found(found, "no INCQuantizer whose quantize() is called, and no call of gpt2opt.quantize_int8")


def _quantizing(s: Submission) -> list[int]:
    return _cells_with(s, r"\b(INCQuantizer|quantize_int8)\b", range(len(s.cells)))


def calibration(s: Submission) -> str:
    if found := s.code.where("prepare_calibration_dataset"):
        return number(found)
    cells = _cells_with(s, "calib", range(len(s.cells)))
    nodes = [node for cell in cells for node in ast.walk(s.code.cells[cell])]
    steps = {  # rows are left out by `filter`, or by a condition in a comprehension
        "filtered": _cells_with(s, r"\bfilter\b", cells) or any(isinstance(node, ast.comprehension) and node.ifs for node in nodes),
        "tokenized": _cells_with(s, "tokeniz", cells),
    }
    if lacking := [step for step, done in steps.items() if not done]:
        missing = f"no calibration set that is {' and '.join(lacking)}"
        raise NotMetError(f"{missing}; prepare_calibration_dataset is not called, or is still empty")
    return number(cells[:1])


def openvino_ir(s: Submission) -> str:
    found = s.code.where("export_ir|quantize_int8|main_export|export_from_model")
    found += [cell for cell, call in s.code.calls("from_pretrained|save_model") if IR_BY.search(ast.unparse(call.func))]
    missing = "no export: INCQuantizer.quantize writes weights for PyTorch, not IR; gpt2opt.export_ir, OVModelForCausalLM(export=True) do"
    return _found(found, missing)


def _first(s: Submission, cells: list[int]) -> int:
    return min(cells, default=len(s.cells))


def _cells_with(s: Submission, pattern: str, cells: Iterable[int]) -> list[int]:
    return [cell for cell in cells if re.search(pattern, s.code.words(cell))]
