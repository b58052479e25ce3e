"""What a user reads about an error: its cause, in one line with what to do; and the exit code that a command ends with."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpt2opt.environment import quiet

LAUNCHER_S = 10  # more than a launcher takes to end its processes after one has ended
_MEMORY = re.compile(
    r"allocate memory|(?:not enough|out of|insufficient) memory|bad_alloc|can't alloc\b|unable to allocate|\bMemoryError\b"
    r"|Resource temporarily unavailable|failed to map segment",
    re.IGNORECASE,
)
"""How torch, CUDA, OpenVINO, NumPy, the C++ library and the system say it; most raise a RuntimeError for it. The last two are of a thread
that finds no room for its stack, and of a library that finds none for its code."""
_LESS_MEMORY = "end other programs, or lower what takes it: a smaller model, a shorter text or window, fewer tokens, prompts or threads"


def cause_of(error: BaseException) -> BaseException:
    """Return what an error stems from: an interrupt, or a lack of memory as a MemoryError; else the error itself.

    Libraries catch these as they catch everything, try another way, and fail there of something else.
    """
    chain = chain_of(error)
    if interrupts := [found for found in chain if isinstance(found, KeyboardInterrupt)]:
        return interrupts[0]
    for found in chain:
        if isinstance(found, MemoryError):
            return found
        if isinstance(found, RuntimeError | OSError | ImportError) and _MEMORY.search(str(found)):
            return MemoryError(next(line.strip() for line in reversed(str(found).splitlines()) if _MEMORY.search(line)))
    return error


def chain_of(error: BaseException) -> list[BaseException]:
    """Return an error, the one that it was raised from or behind, and so on to the first one."""
    chain: list[BaseException] = []
    around: BaseException | None = error
    while around and around not in chain:
        chain.append(around)
        around = around.__cause__ or (None if around.__suppress_context__ else around.__context__)
    return chain


def raise_cause(error: BaseException) -> None:
    """Raise the interrupt or the MemoryError that an error stems from, if it stems from one: it says nothing of a file or a model."""
    cause = cause_of(error)
    if isinstance(cause, KeyboardInterrupt | MemoryError):
        raise cause from None


def text_of(error: BaseException) -> str:
    """Return the line that a user reads about an error. One without a message is named by its type, with what to do."""
    text = str(error).strip()
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return f"memory ran out{f' ({text})' if text else ''}; {_LESS_MEMORY}"
    return text or f"{type(error).__name__}, without a message; run the same again, and report it if it comes back"


def guarded(parser: Callable[[], argparse.ArgumentParser], arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit code; an error that a user can act on is one line on stderr."""
    quiet()
    try:
        options = parser().parse_args(arguments)
        code = options.command(options)
        sys.stdout.flush()
        return code
    except (KeyboardInterrupt, Exception) as error:
        cause = cause_of(error)
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again at the end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(cause, BrokenPipeError):
            return 141  # as the shell says of a command that `head` has read enough of
        if not isinstance(cause, KeyboardInterrupt | MemoryError | ValueError | ImportError | OSError | RuntimeError):
            raise  # a fault of ours
        _print_error(cause)
        # A RuntimeError is a check of ours that failed: an audit, an empty trace, a child process.
        return 130 if isinstance(cause, KeyboardInterrupt) else 1 if isinstance(cause, RuntimeError) else 2


def _print_error(error: BaseException) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        if isinstance(error, KeyboardInterrupt):
            return  # all processes of a launcher are interrupted together
        time.sleep(LAUNCHER_S)  # a machine's first process mostly fails alike; it says so, and the launcher ends this one meanwhile
    print(f"gpt2opt: {text_of(error)}", file=sys.stderr)


def place(text: str) -> Path:
    """Return the path of an option. An empty one, of a shell's variable that is not set for example, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name came, expected that of a file or a folder")
    return Path(text)
