"""Which calls of a notebook are calls of this library, and what each of its functions does."""

import ast
import re
from collections.abc import Iterable, Iterator

import gpt2opt

ROOT, COURSE = "gpt2opt", "gpt2opt.course"
DOES = {
    COURSE: {
        "load_fp16_model": "from_pretrained half",
        "load_wikitext_dataset": "load_dataset",
        "measure_latency_gpu": "measure_latency",
        "compute_perplexity": "perplexity",
        "profile_model_for_tensorboard": "record_trace",
        "prune_attention_heads": "prune_heads half",
        "prepare_tokenizer_for_padding": "",
        "tokenize_dataset": "",
        "create_training_arguments": "",
        "run_fine_tuning": "Trainer",
        "prepare_calibration_dataset": "",
        "run_post_training_quantization": "quantize_int8",
        "load_cpu_model": "load_ir",
        "measure_latency_cpu": "measure_latency",
        "peak_ram_usage_gb": "peak_ram",
        "compute_ppl_cpu": "perplexity",
        "plot_latency": "",
        "plot_memory_usage": "",
        "plot_perplexity": "",
        "get_next_token_suggestions": "generate",
    },
    ROOT: {
        "load_fp16_model": "from_pretrained half",
        "run_profile": "load_fp16_model half record_trace measure",
        "run_prune": "prune_attention_heads half measure",
        "run_finetune": "prepare_tokenizer_for_padding tokenize_dataset create_training_arguments Trainer measure",
        "finetune_model": "prepare_tokenizer_for_padding tokenize_dataset create_training_arguments Trainer",
        "run_quantize": "prepare_calibration_dataset quantize_int8 measure",
        "score_model": "perplexity",
    },
}
"""Module -> function -> what it does, in the names of the calls that the points look for; nothing where its own name says it."""
STEPS = ("run_profile", "run_prune", "run_finetune", "run_quantize")
COMMANDS = {"finetune": ("finetune_model",), "perplexity": ("score_model",), "export": ("export_ir",)}
"""Command of `gpt2opt` -> the functions that it calls. `run` calls the `STEPS`, up to the one that its option names."""
SHELL = re.compile(r"(?:^|[;&|])[ \t]*(?:\w+=\S*[ \t]+)*(?:\S*\bgpt2opt|\S+[ \t]+-m[ \t]+gpt2opt)[ \t]+(\w+)([^\n;&|]*)", re.MULTILINE)
SHELL_CALLS = ("system", "getoutput", "run_cell_magic")
"""What IPython makes of `!command`, `x = !command` and `%%bash`."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def library_calls(cells: Iterable[ast.Module]) -> dict[ast.Call, tuple[str, ...]]:
    """Return the calls of this library in the cells of a notebook: the function's own name, then the names of what it does.

    A name is what the last import, definition or assignment before the call made of it. So a function that the notebook itself defines is
    none of the library's, whatever it is called.
    """
    found, names = {}, {ROOT: ROOT}
    for statement in (statement for tree in cells for statement in tree.body):
        for node in ast.walk(statement):
            names.update(_imported(node))
        if isinstance(statement, Function):
            names[statement.name] = ""
        for call in (node for node in ast.walk(statement) if isinstance(node, ast.Call)):
            if does := _shell(call) or _does(_dotted(call.func, names)):
                found[call] = does
        names.update(dict.fromkeys(_bound(statement), ""))
    return found


def _imported(node: ast.AST) -> dict[str, str]:
    """Return the names that an import binds, each with the name in this library, or with nothing if it is of another one."""
    if isinstance(node, ast.Import):
        pairs = [(alias.asname or alias.name.partition(".")[0], alias.name if alias.asname else ROOT, alias.name) for alias in node.names]
        return {name: full if _is_ours(module) else "" for name, full, module in pairs}
    if not isinstance(node, ast.ImportFrom):
        return {}
    module, ours = node.module or "", _is_ours(node.module or "")
    names = {alias.asname or alias.name: alias.name for alias in node.names if alias.name != "*"}
    if ours and len(names) < len(node.names):
        names |= {name: name for name in (gpt2opt.__all__ if module == ROOT else DOES.get(module, ()))}
    return {name: f"{module}.{full}" if ours else "" for name, full in names.items()}


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == ROOT


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement assigns or defines, but for those inside of a function."""
    if isinstance(node, Function | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif not isinstance(node, ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """Return the full name of what is called, such as `gpt2opt.course.plot_latency`; nothing if it is none of this library."""
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, names)
        return owner and f"{owner}.{node.attr}"
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def _does(dotted: str) -> tuple[str, ...]:
    module, _, name = dotted.rpartition(".")
    return (name, *DOES[COURSE if f"{module}.".startswith(f"{COURSE}.") else ROOT].get(name, "").split()) if module else ()


def _shell(call: ast.Call) -> tuple[str, ...]:
    """Return what the commands of `gpt2opt` do in a line of a shell; nothing if it holds none."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    text = call.args[-1].value if name in SHELL_CALLS and call.args and isinstance(call.args[-1], ast.Constant) else ""
    done: list[str] = []
    for command, options in SHELL.findall(str(text)):
        until = re.search(r"--until[ =](\w+)", options)
        ended = f"run_{until[1]}" if until else ""
        steps = STEPS[: STEPS.index(ended) + 1] if ended in STEPS else STEPS
        functions = steps if command == "run" else COMMANDS.get(command, ())
        done += [name for function in functions for name in _does(f"{ROOT}.{function}")]
    return tuple(done)
