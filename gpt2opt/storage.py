"""Write files and folders whole or not at all, and never in place of something that a user put there.

A folder that this project writes holds a marker file, which lists what was written. Only listed files are ever replaced or removed. A
folder that has other files and no marker is refused. A single file is replaced only if its content says that this project wrote it.
"""

import atexit
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

PREFIX = ".gpt2opt"
MARKER = f"{PREFIX}.files.json"
LOCK = f"{PREFIX}.lock"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"  # of a torch model: one file, or several with an index
LOADED_FIRST = "config.json"  # of a model: removed first and moved in last, so that a mixture of two versions never loads
SIGNATURES = (b'"schema": "gpt2opt.', b'<meta name="generator" content="gpt2opt">', b"Software\0gpt2opt", b"gpt2opt.submission/1")
"""The bytes by which a file shows that this project wrote it: a JSON result, an HTML report, a PNG chart, a zip file to hand in."""


def check_folder(folder: Path | str) -> None:
    """Raise ValueError unless `folder` may be written: it is absent, empty or written by this project, and its place is writable."""
    if not str(folder):
        raise ValueError("the folder has no name: an empty one came, expected that of a new or an empty folder")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder; name a new or an empty one")
    try:
        others = folder.is_dir() and _listed(folder) is None and any(not path.name.startswith(PREFIX) for path in folder.iterdir())
    except OSError as error:
        raise ValueError(f"can't read {folder}: {error.strerror}; name another folder") from error
    if others:
        raise ValueError(f"{folder} is not empty and was not written by gpt2opt, so it is left alone; name a new or an empty folder")
    _check_writable(folder)


@contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """Yield an empty folder to fill. At the end its files move into `folder`; if anything fails, none does.

    The yielded folder is inside `folder`, which may be a mount point or a link to another disk, so that each file moves by one rename.
    An earlier version stays until the new one is on disk. A user's own files in `folder` stay as they are; a file that has the name of a
    new one is renamed to `NAME.kept`. See `check_folder` and `take_lock` for what is refused.
    """
    check_folder(folder)
    folder = Path(folder).resolve()
    made = _make(folder)
    try:
        with ExitStack() as stack:
            stack.callback(take_lock(folder).release)
            for stale in folder.glob(f"{PREFIX}-*"):
                shutil.rmtree(stale)  # left by a process that was killed; the lock shows that no other process is at work
            with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-", dir=folder) as partial:
                yield Path(partial)
                _move(Path(partial), folder)
    except BaseException:
        _unmake(made)
        raise


def _move(partial: Path, folder: Path) -> None:
    old = _listed(folder) or []
    files = [path for path in partial.rglob("*") if path.is_file() and not path.name.startswith(PREFIX)]
    new = sorted((path.relative_to(partial).as_posix() for path in files), key=lambda name: name == LOADED_FIRST)
    _write_marker(folder, sorted({*old, *new}))  # while files move, the files of both versions are listed
    if LOADED_FIRST in old:
        (folder / LOADED_FIRST).unlink(missing_ok=True)
    for name in new:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and name not in old:
            target.rename(target.with_name(f"{target.name}.kept"))
        os.replace(partial / name, target)
    _remove(folder, set(old) - set(new))
    _write_marker(folder, new)


def add_file(folder: Path, name: str, content: bytes) -> None:
    """Write one more file into a folder, whole or not at all; the next version of what this project wrote there removes it too."""
    write_whole(folder / name, content)
    if (listed := _listed(folder)) is not None:
        _write_marker(folder, sorted({*listed, name}))


def claim_folder(folder: Path | str) -> Path:
    """Make a folder for other folders, or take over one that this project made, and return it. See `check_folder` for what is refused."""
    check_folder(folder)
    folder = Path(folder)
    _make(folder)
    if _listed(folder) is None:
        _write_marker(folder, [])
    return folder


def remove_folder(folder: Path) -> None:
    """Remove what this project wrote into a folder, then the folder if it is empty. A folder without a marker stays as it is."""
    if (listed := _listed(folder)) is not None:
        _remove(folder, listed)
        _write_marker(folder, [])
        _unmake([folder])


def check_file(path: Path | str) -> None:
    """Raise ValueError unless a result may be written to `path`: it is absent or this project wrote it, and its place is writable."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file; name a file in it, such as {path / 'result'}{path.suffix}")
    if path.exists() and not any(signature in path.read_bytes() for signature in SIGNATURES):
        raise ValueError(f"{path} is there and was not written by gpt2opt, so it is left alone; name another file")
    if path.is_mount():
        raise ValueError(f"{path} is a mount point, which can't be replaced; name another file")
    _check_writable(path.parent)


def write_result(path: Path | str, content: str | bytes) -> None:
    """Write a result whole or not at all. See `check_file` for what is refused; the content must hold one of `SIGNATURES`."""
    check_file(path)
    write_whole(Path(path), content)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, in place of whatever is there. A link stays a link."""
    path = path.resolve()
    try:
        _make(path.parent)
        handle, partial = tempfile.mkstemp(prefix=f"{PREFIX}.part-", dir=path.parent)
    except OSError as error:
        raise ValueError(f"can't write {path}: {error.strerror}; name a writable place") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(partial, 0o644)  # mkstemp lets only the owner read it
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def take_lock(folder: Path):
    """Keep other processes out of a folder until this process ends or calls `release()` on the returned lock.

    A process may take a lock that it already holds. A lock whose process is gone is taken over, any other raises ValueError.
    """
    from filelock import SoftFileLock, Timeout

    held = SoftFileLock(Path(folder).resolve() / LOCK, timeout=0.1, is_singleton=True)
    try:
        held.acquire(poll_interval=0.02)  # a first attempt may only clear away the lock of a process that is gone
    except Timeout:
        raise ValueError(
            f"process {held.pid} is writing to {folder}; wait for it to end, or name another folder (its lock is {held.lock_file})"
        ) from None
    atexit.register(held.release, force=True)
    return held


def _check_writable(folder: Path) -> None:
    """Raise ValueError unless a file can be made in a folder or, if it is absent, in its nearest existing parent."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"can't write {folder}: {error.strerror}; name a writable place") from error


def _make(folder: Path) -> list[Path]:
    """Make a folder and its missing parents, each with a marker; return what was made, the innermost first."""
    missing = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        _write_marker(place, [])
    return missing


def _unmake(folders: list[Path]) -> None:
    """Remove each of these folders that holds nothing but its marker."""
    for folder in folders:
        if [path.name for path in folder.iterdir()] == [MARKER]:
            shutil.rmtree(folder)


def _listed(folder: Path) -> list[str] | None:
    """Return what this project wrote into a folder, as relative names; None if the folder has no valid marker."""
    try:
        names = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    inside = [name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts]
    return inside if len(inside) == len(names) else None


def _write_marker(folder: Path, names: list[str]) -> None:
    write_whole(folder / MARKER, json.dumps({"schema": "gpt2opt.folder/1", "files": names}, indent=1) + "\n")


def _remove(folder: Path, names) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
        for above in (folder / name).relative_to(folder).parents[:-1]:
            with suppress(OSError):  # the folder holds something else
                (folder / above).rmdir()


def read_json(path: Path, schema: str, command: str, older: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object that names a schema or one of the older ones; `command`, which errors name, is the one that writes such a file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}; `{command}` writes it") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); `{command}` writes it again") from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found not in (schema, *older):
        raise ValueError(f"{path} has schema {found!r}, expected {schema!r}; `{command}` writes it again")
    return content


def from_json(kind: Any, value: Any) -> Any:
    """Rebuild a value of type `kind` (a dataclass of this file, or a container of them) from parsed JSON."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_json(hints[name], item) for name, item in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else from_json(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        return tuple(from_json(arguments[0], item) for item in value)
    if origin is dict and arguments[1] is not Any:
        return {key: from_json(arguments[1], item) for key, item in value.items()}
    return value


def hash_weights(directory: Path) -> str:
    """Return the SHA-256 over the names and contents of a directory's weight files."""
    digest = hashlib.sha256()
    for path in weight_files(directory):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """Return, in name order, the weights that are loaded from a directory: those of a torch model, else those of an IR."""
    return torch_weights(directory) or sorted(path for path in Path(directory).iterdir() if path.suffix in (".bin", ".xml"))


def torch_weights(directory: Path) -> list[Path]:
    """Return the safetensors files of a torch model: one, or those that an index names, whether they are there or not; or none."""
    whole, index = Path(directory, WEIGHTS), Path(directory, WEIGHTS_INDEX)
    if whole.exists() or not index.exists():
        return [whole] if whole.exists() else []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(index.with_name(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} does not name the files of a model's weights ({error!r:.80}); write or download it again") from error
