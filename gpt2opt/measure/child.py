"""A fresh process that makes one object and answers calls of its methods, for everything that a used process would falsify."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

LIMITED_S = 300  # life of a child with a memory limit: a library that gets no memory may wait for ever, as OpenBLAS does


class Child(AbstractContextManager["Child"]):
    """An object in a process of its own, with all the libraries that it loads. Use it in a `with` block, or call `close`.

    The process is a plain subprocess, because multiprocessing would import the caller's main script into it.
    """

    def __init__(
        self,
        factory: Callable,
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        address_space_bytes: int | None = None,
        python: Path | None = None,
    ):
        """Start the process and make the object. Arguments and values, here and of later calls, are pickled.

        Args:
            factory: a module-level class or function; the child imports its module and calls it.
            environment: variables that the child gets beside those of this process.
            address_space_bytes: the most that the child may map (RLIMIT_AS), set before it imports anything; see `LIMITED_S`.
            python: the interpreter of an environment with other packages; the child imports nothing of ours but this project.

        Raises:
            RuntimeError, KeyboardInterrupt, TimeoutError: as `call`.
        """
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 — it lives as long as the process
        path = str(Path(__file__).parents[2]) if python else os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [python or sys.executable, "-c", "from gpt2opt.measure.child import serve; serve()", str(address_space_bytes or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        )
        self._timed_out = False
        self._timer = threading.Timer(LIMITED_S, self._give_up)
        if address_space_bytes:
            self._timer.start()
        try:
            self.call(factory, *arguments)
        except BaseException:
            self.close()
            raise

    def call(self, what: Callable | str, *arguments: Any) -> Any:
        """Call a method of the object, by its name, and return its value.

        Raises:
            RuntimeError: the method raised, or the process died; the last line of the message says of what, by exit code or signal.
            KeyboardInterrupt: the process was interrupted.
            TimeoutError: it was killed because its time was over.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            pickle.dump((what, arguments), self._process.stdin)
            self._process.stdin.flush()
            value, complaint = pickle.load(self._process.stdout)
        except (OSError, EOFError) as death:
            if self._timed_out:
                raise TimeoutError(f"no answer in {self._timer.interval:g} s") from death
            if (code := self._process.wait()) == -signal.SIGINT:  # a terminal interrupts every process of a command
                raise KeyboardInterrupt from None
            self._complaints.seek(0)
            raise RuntimeError(_last_words(code, self._complaints.read().decode(errors="replace"))) from death
        if complaint:
            raise RuntimeError(complaint)
        return value

    def close(self) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_up(self) -> None:
        self._timed_out = True
        self._process.kill()


def _last_words(code: int, said: str) -> str:
    """Return all that a dead process wrote on stderr and, as a last line that may stand alone, how it died and how its words ended."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    how = f"exit code {code}{f' ({signal.Signals(-code).name}: {signal.strsignal(-code)})' if code < 0 else ''}"
    end = f"it said last: {' | '.join(line[-80:] for line in lines[-3:])}" if lines else "it said nothing"
    return "\n".join([*lines, f"the process died with {how}; {end}{'; was memory short?' if code == -signal.SIGKILL else ''}"])


def thread_settings(threads: int) -> dict[str, str]:
    """Return the environment that gives every library the same threads and lets the threads of an idle process sleep."""
    # Intel's OpenMP would spin for 200 ms into the turn of the next engine; a millisecond outlasts the gaps within a token.
    return {**dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)), "KMP_BLOCKTIME": "1"}


def serve() -> None:
    """Answer the calls of a `Child` until its end is closed; runs in the child."""
    if limit := sys.argv[1]:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    from gpt2opt.environment import quiet

    quiet()
    served = None
    while True:
        answer: tuple[Any, str | None] = None, None
        try:
            what, arguments = pickle.load(sys.stdin.buffer)
            if isinstance(what, str):
                answer = getattr(served, what)(*arguments), None
            else:
                served = what(*arguments)
        except EOFError:
            return
        except Exception:
            answer = None, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()
