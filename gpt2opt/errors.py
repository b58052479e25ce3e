"""What an error tells a person: what it stems from, in one line with what to do."""

import re

_MEMORY = re.compile(
    r"allocate memory|(?:not enough|out of|insufficient) memory|bad_alloc|unable to allocate|\bMemoryError\b", re.IGNORECASE
)
"""How torch, CUDA, OpenVINO, NumPy, the C++ library and the system say it; most raise a RuntimeError for it."""
_LESS_MEMORY = "end other programs, or lower what takes it: a smaller model, a shorter text or window, fewer tokens, prompts or threads"


def cause_of(error: BaseException) -> BaseException:
    """Return what an error stems from: an interrupt, or a lack of memory as a MemoryError; else the error itself.

    Libraries catch these as they catch everything, try another way, and fail there of something else.
    """
    chain = chain_of(error)
    for found in chain:
        if isinstance(found, KeyboardInterrupt):
            return found
    for found in chain:
        if isinstance(found, MemoryError):
            return found
        if isinstance(found, RuntimeError | OSError) and _MEMORY.search(str(found)):
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
    """Return what to tell of an error; one without a text of its own is told by its type, with what to do."""
    text = str(error).strip()
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return f"memory ran out{f' ({text})' if text else ''}; {_LESS_MEMORY}"
    return text or f"{type(error).__name__}, without a message; run the same again, and report it if it comes back"
