"""The Python in the cells of a notebook, read without running it, and what each of its calls does.

Comments and docstrings count as no evidence.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

TRAINING = "prepare_tokenizer_for_padding tokenize_dataset TrainingArguments Trainer"
DOES = {
    "load_fp16_model": "from_pretrained half",
    "profile_model_for_tensorboard": "record_trace",
    "prune_attention_heads": "half",
    "create_training_arguments": "TrainingArguments",
    "run_fine_tuning": "Trainer",
    "run_post_training_quantization": "quantize_int8",
    "run_profile": "load_fp16_model record_trace measure",
    "run_prune": "prune_attention_heads measure",
    "run_finetune": f"{TRAINING} measure",
    "run_quantize": "prepare_calibration_dataset quantize_int8 measure",
    "finetune_model": TRAINING,
    "score_model": "perplexity",
    "gpt2opt run": "run_profile run_prune run_finetune run_quantize",
    "gpt2opt finetune": "finetune_model",
    "gpt2opt perplexity": "score_model",
    "gpt2opt export": "export_ir",
}
"""Function or command of this library -> what it does besides, in the names of the calls that the points look for."""
COMMAND = re.compile(r"\bgpt2opt[ \t]+\w+")
SHELL_CALLS = ("system", "getoutput", "run_cell_magic")
"""What IPython makes of `!command`, `x = !command` and `%%bash`."""
AROUND_PYTHON = re.compile(r"\A\s*%%(?:time|timeit|capture|prun)\b.*\n?")
"""Cell magics with Python below them."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Code:
    """cells: the syntax tree of each code cell; an empty one where a cell is not Python. A cell is known by its index from 0."""

    cells: tuple[ast.Module, ...]

    @cached_property
    def functions(self) -> dict[str, Function]:
        """Return the functions that the notebook defines, the last of each name."""
        return {node.name: node for tree in self.cells for node in ast.walk(tree) if isinstance(node, Function)}

    @cached_property
    def stubs(self) -> list[str]:
        """Return the names of the functions whose body does nothing yet."""
        return [name for name, node in self.functions.items() if all(map(_does_nothing, node.body))]

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Return the names that `from module import function as name` gives."""
        imports = [node for tree in self.cells for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        return {alias.asname: alias.name for node in imports for alias in node.names if alias.asname}

    def calls(self, names: str, cells: range | None = None) -> list[tuple[int, ast.Call]]:
        """Return the calls in some cells, by default in all, that do something whose whole name matches a pattern; each with its cell."""
        every = ((cell, call) for cell in (range(len(self.cells)) if cells is None else cells) for call in _calls(self.cells[cell]))
        return [(cell, call) for cell, call in every if any(re.fullmatch(names, name) for name in self.does(call))]

    def where(self, names: str, cells: range | None = None) -> list[int]:
        """Return the cells of such calls."""
        return sorted({cell for cell, _ in self.calls(names, cells)})

    def does(self, call: ast.Call) -> list[str]:
        """Return what a call does: its function's own name (`c` in `a.b.c()`), and what the functions and commands of this library do.

        A function that the notebook itself defines is none of the library's, whatever it is called, and does nothing while it is empty.
        """
        name = own_name(call.func)
        if name in self.functions:
            return [] if name in self.stubs else [name]
        text = getattr(call.args[-1], "value", "") if name in SHELL_CALLS and call.args else ""
        return [word for one in (self.aliases.get(name, name), *COMMAND.findall(str(text))) for word in _with_parts(" ".join(one.split()))]

    def settings(self, name: str) -> list[ast.expr]:
        """Return what is given by a name: assigned to it, as keyword of a call, key of a dictionary or default of a parameter."""
        return [value for tree in self.cells for node in ast.walk(tree) for key, value in _given(node) if key == name]

    def value(self, node: ast.expr) -> Any:
        """Return the constant that an expression is, or the last one that was given to the name in it; None if it is neither."""
        given = [node, *(self.settings(name) if (name := own_name(node)) else ())]
        return next((one.value for one in reversed(given) if isinstance(one, ast.Constant)), None)

    def words(self, cell: int) -> str:
        """Return the names and strings in a cell and in the functions of the notebook that it calls, and what its calls do."""
        calls = _calls(self.cells[cell])
        own = [self.functions[name] for call in calls if (name := own_name(call.func)) in self.functions]
        words = [word for call in calls for word in self.does(call)]
        for node in (node for part in (self.cells[cell], *own) for node in ast.walk(part)):
            words.append(node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else own_name(node))
        return " ".join(words)


def read_code(sources: list[str]) -> Code:
    return Code(tuple(map(_parse, sources)))


def _parse(source: str) -> ast.Module:
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        tree = ast.parse(TransformerManager().transform_cell(AROUND_PYTHON.sub("", source)))
    except (SyntaxError, ValueError):  # ValueError: a null character
        return ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):  # without docstrings, and without three dots in place of code
            kept = [line for line in body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))]
            setattr(node, "body", kept)  # noqa: B010
    return tree


def own_name(node: ast.AST) -> str:
    """Return `c` of `a.b.c` and of `c`, and nothing of what has no name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def last_value(tree: ast.Module, source: str) -> ast.expr | None:
    """Return the expression that a cell ends in, whose value is shown below it; None if it ends otherwise, or in `;`."""
    last = tree.body[-1] if tree.body and not source.rstrip().endswith(";") else None
    return last.value if isinstance(last, ast.Expr) else None


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _with_parts(name: str) -> list[str]:
    return [name, *(word for part in DOES.get(name, "").split() for word in _with_parts(part))]


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (isinstance(statement, ast.Raise) and "NotImplementedError" in ast.unparse(statement))


def _given(node: ast.AST) -> Iterator[tuple[str | None, ast.expr]]:
    if isinstance(node, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords)
    elif isinstance(node, ast.Assign):
        yield from ((own_name(target), node.value) for target in node.targets)
    elif isinstance(node, ast.Dict):
        yield from ((str(getattr(key, "value", "")), value) for key, value in zip(node.keys, node.values, strict=True))
    elif isinstance(node, Function):
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        yield from zip(names[::-1], node.args.defaults[::-1], strict=False)
