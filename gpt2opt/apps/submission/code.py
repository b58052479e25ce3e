"""The Python in the cells of a notebook, read without running it, and what each of its calls does.

Comments and docstrings count as no evidence.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ROOT = "gpt2opt"
TRAINING = "prepare_tokenizer_for_padding tokenize_dataset create_training_arguments Trainer"
DOES = {
    "load_fp16_model": "from_pretrained half",
    "profile_model_for_tensorboard": "record_trace",
    "course.prune_attention_heads": "half",
    "run_post_training_quantization": "quantize_int8",
    "run_profile": "load_fp16_model half record_trace measure",
    "run_prune": "prune_attention_heads half measure",
    "run_finetune": f"{TRAINING} measure",
    "finetune_model": TRAINING,
    "run_quantize": "prepare_calibration_dataset quantize_int8 measure",
    "score_model": "perplexity",
}
"""Function of this library -> what it does besides what its own name says, in the names of the calls that the points look for."""
STEPS = ("run_profile", "run_prune", "run_finetune", "run_quantize")
COMMANDS = {"finetune": ("finetune_model",), "perplexity": ("score_model",), "export": ("export_ir",)}
"""Command of `gpt2opt` -> the functions that it calls. `run` calls the `STEPS`, up to the one that its option names."""
SHELL = re.compile(r"(?:^|[;&|])[ \t]*(?:\w+=\S*[ \t]+)*(?:\S*\bgpt2opt|\S+[ \t]+-m[ \t]+gpt2opt)[ \t]+(\w+)([^\n;&|]*)", re.MULTILINE)
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
    def library(self) -> dict[ast.Call, tuple[str, ...]]:
        """Return the calls of this library: the function's own name, then the names of what it does.

        A name is what the last import, definition or assignment before the call made of it. So a function that the notebook itself defines
        is none of the library's, whatever it is called.
        """
        found, names = {}, {ROOT: ROOT}
        for statement in (statement for tree in self.cells for statement in tree.body):
            for node in ast.walk(statement):
                names |= _imported(node)
            if isinstance(statement, Function):
                names[statement.name] = ""
            for call in _calls(statement):
                if does := _shell(call) or _does(_dotted(call.func, names)):
                    found[call] = does
            names |= dict.fromkeys(_bound(statement), "")
        return found

    def calls(self, names: str, cells: range | None = None) -> list[tuple[int, ast.Call]]:
        """Return the calls of functions whose own name (`c` in `a.b.c()`) matches a pattern, each with its cell.

        A call of this library matches by what its function does, too. One of a function that the notebook leaves empty matches nothing.

        Args:
            names: a regular expression for the whole name.
            cells: those that count; all by default.
        """
        matches = re.compile(names).fullmatch
        every = ((cell, call) for cell in (range(len(self.cells)) if cells is None else cells) for call in _calls(self.cells[cell]))
        return [(cell, call) for cell, call in every if any(map(matches, self._does(call)))]

    def _does(self, call: ast.Call) -> tuple[str, ...]:
        name = own_name(call.func)
        return self.library.get(call) or (() if name in self.stubs else (name,))

    def settings(self, name: str) -> list[ast.expr]:
        """Return what is given by a name: assigned to it, as keyword of a call, key of a dictionary or default of a parameter."""
        return [value for tree in self.cells for node in ast.walk(tree) for key, value in _given(node) if key == name]

    def value(self, node: ast.expr) -> Any:
        """Return the constant that an expression is, or the last one that was given to the name in it; None if it is neither."""
        given = [node, *(self.settings(name) if (name := own_name(node)) else ())]
        return next((one.value for one in reversed(given) if isinstance(one, ast.Constant)), None)

    def words(self, cell: int) -> str:
        """Return the names and strings in a cell and in the functions of the notebook that it calls, and what the library's do."""
        calls = _calls(self.cells[cell])
        own = [self.functions[name] for call in calls if call not in self.library and (name := own_name(call.func)) in self.functions]
        words = [word for call in calls for word in self.library.get(call, ())]
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


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


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


def _imported(node: ast.AST) -> dict[str, str]:
    """Return the names that an import binds, each with its full name. `*` stands for all names that nothing else binds."""
    if isinstance(node, ast.ImportFrom):
        ours = (node.module or "").partition(".")[0] == ROOT
        names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names if alias.name != "*" or ours}
        return {name: (node.module or "") if name == "*" else full for name, full in names.items()}
    if isinstance(node, ast.Import):
        roots = {alias.name.partition(".")[0] for alias in node.names if not alias.asname}
        return {alias.asname: alias.name for alias in node.names if alias.asname} | {root: root for root in roots}
    return {}


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
    """Return the full name of what is called, such as `gpt2opt.course.plot_latency`; nothing if it is not known."""
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, names)
        return owner and f"{owner}.{node.attr}"
    if not isinstance(node, ast.Name):
        return ""
    return names[node.id] if node.id in names else f"{names['*']}.{node.id}" if "*" in names else ""


def _does(dotted: str) -> tuple[str, ...]:
    """Return what a function of this library does, its own name first; nothing for another one."""
    *module, name = dotted.split(".")
    if module[:1] != [ROOT]:
        return ()
    return (name, *(DOES.get(f"{module[-1]}.{name}") or DOES.get(name, "")).split())


def _shell(call: ast.Call) -> tuple[str, ...]:
    """Return what the commands of `gpt2opt` do in a line of a shell; nothing if it holds none."""
    text = str(getattr(call.args[-1], "value", "")) if own_name(call.func) in SHELL_CALLS and call.args else ""
    done: list[str] = []
    for command, options in SHELL.findall(text):
        until = re.search(r"--until[ =](\w+)", options)
        last = f"run_{until[1]}" if until else ""
        steps = STEPS[: STEPS.index(last) + 1] if last in STEPS else STEPS
        for function in steps if command == "run" else COMMANDS.get(command, ()):
            done += _does(f"{ROOT}.{function}")
    return tuple(done)
