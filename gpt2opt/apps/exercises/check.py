"""Run what a learner wrote, or begin the file that they write; an error in it is one line that names the line."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2opt.apps.exercises.tasks import EXERCISES


def write_starter(number: int, path: Path) -> None:
    """Write the file that a learner goes on from; FileExistsError rather than write over one."""
    function, arguments, task, _ = EXERCISES[number]
    body = f'raise NotImplementedError("write the body of {function} here")'
    with path.open("x", encoding="utf-8") as file:
        file.write(f'import numpy as np\nimport torch\n\n\ndef {function}({arguments}):\n    """{task}"""\n    {body}\n')


def solves(number: int, path: Path) -> bool:
    """Print each trial of an exercise up to the first that fails, and return whether all hold.

    ValueError: the file can't be compiled, raises an error or lacks the function; the line says where.
    """
    exercise, source, names = EXERCISES[number], path.read_bytes(), dict[str, Any]()
    _located(path, lambda: exec(compile(source, str(path), "exec"), names))
    if not callable(names.get(exercise.function)):
        raise ValueError(f"{path} has no function {exercise.function}({exercise.arguments}); write one of that name")
    trials = exercise.trials(names[exercise.function])
    while trial := _located(path, lambda: next(trials, None)):
        print(f"no   {trial[0]}: {trial[1]}" if trial[1] else f"ok   {trial[0]}")
        if trial[1]:
            return False
    return True


def _located(path: Path, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines or [None])[-1]  # the former is that of a SyntaxError
        said = " ".join(f"{type(error).__name__}: {getattr(error, 'msg', error)}".split()).removesuffix(":")
        place = f"{path}, line {line}" if line else f"{path}"
        raise ValueError(f"{place}: {said}; mend it, then run the same command again") from None
