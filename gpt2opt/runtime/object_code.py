"""The functions of `kernels.py` as object code: compiled once for a CPU, and loaded without numba, which takes 120 MB and half a second."""

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpt2opt.environment import installed

logger = logging.getLogger(__name__)
FOLDERS = (Path(__file__).with_name("__pycache__"), Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gpt2opt"))
"""Where object code is kept, in the first one that can be written: beside Python's own compiled code, or in the user's cache."""
HASH_SIZE = 32


class CantCompileError(Exception):
    """The functions can't be compiled on this machine; the message says why, in a line."""


@functools.cache
def compiled_function(name: str) -> Callable[[int, int, int], int]:
    """Return a function of `kernels.function_named`, compiled for this CPU; it takes three int64 and releases Python's lock.

    Raises:
        CantCompileError: numba is not installed, or does not know this CPU.
    """
    try:
        from llvmlite import binding
    except ImportError:
        raise CantCompileError("numba is not installed") from None
    except OSError as error:  # little memory, or a library that does not fit this system
        raise CantCompileError(f"numba's compiler can't be loaded: {error}") from None
    symbol, code = _object_code(name).split(b"\n", 1)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    # The two pointers are where numba's functions write a result and an exception; these have neither.
    native = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3)(engine.get_function_address(symbol.decode()))
    native.kept, unused = (engine, code), ctypes.byref(ctypes.c_int64())  # type: ignore[attr-defined] # which hold the code
    return functools.partial(native, unused, unused)


def _object_code(name: str) -> bytes:
    """Return the object code of a function, from the cache if it is there and whole."""
    from llvmlite import binding

    sources = [Path(__file__).with_name(f"{module}.py").read_bytes() for module in ("kernels", "step_layout", "kv_cache")]
    cpu = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    asked = [os.environ.get(variable) for variable in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    key = hashlib.sha256(repr((sources, installed("numba"), installed("llvmlite"), cpu, asked)).encode()).hexdigest()
    file = f"{name.replace(' ', '-')}-{key[:16]}.o"
    for folder in FOLDERS:
        with suppress(OSError):
            content = (folder / file).read_bytes()
            if hashlib.sha256(content[HASH_SIZE:]).digest() == content[:HASH_SIZE]:
                return content[HASH_SIZE:]
    code = _compile(name)
    for folder in FOLDERS:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{file}.{os.getpid()}"
            partial.write_bytes(hashlib.sha256(code).digest() + code)
            partial.replace(folder / file)
            break
    return code


def _compile(name: str) -> bytes:
    logger.warning("the decode step is compiled for this CPU, once; this takes some seconds")
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "gpt2opt.runtime.kernels", name]
    try:
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False)
    except OSError as error:  # no memory for another process
        raise CantCompileError(f"numba's process can't be started: {error}") from None
    if done.returncode:
        raise CantCompileError((done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return done.stdout
