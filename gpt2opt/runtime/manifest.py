"""The manifest beside an IR: the types of its weights and of its KV cache, and hashes that reveal a changed or truncated file."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "gpt2opt.json"
SCHEMA = "gpt2opt.ir/4"
WEIGHTS = ("f32", "i8", "i4")
KV_CACHES = ("f32", "f16", "u8")
IR_NAME, IR_WEIGHTS = IR_FILES = ("openvino_model.xml", "openvino_model.bin")


@dataclass(frozen=True)
class Manifest:
    """What is known of an exported IR.

    weights: the type that the block matmuls are stored in, of `WEIGHTS`. kv_cache: the type that keys and values are to be kept in, of
    `KV_CACHES`. sha256: of each file of the IR, by its name. made_from: SHA-256 of the weight files that the exported model was loaded
    from, see `storage.hash_weights`; None if that is not known.
    """

    weights: str
    kv_cache: str
    sha256: dict[str, str]
    made_from: str | None = None
    schema: str = SCHEMA


def is_ir(directory: Path | str) -> bool:
    """Return whether a directory holds an IR."""
    return Path(directory, IR_NAME).exists()


def write_manifest(directory: Path, weights: str, kv_cache: str, made_from: str | None) -> None:
    """Write the manifest of the IR in a directory, with the hashes of its files; see `Manifest` for the arguments."""
    hashes = {name: _sha256(directory / name) for name in IR_FILES}
    content = dataclasses.asdict(Manifest(weights, kv_cache, hashes, made_from))
    (directory / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(directory: Path | str) -> Manifest:
    """Read what `export_ir` wrote beside an IR, and check the IR against it.

    Raises:
        ValueError: a file is missing, was changed or was truncated; the message names it.
    """
    directory = Path(directory)
    for name in (*IR_FILES, NAME):
        if not (directory / name).is_file():
            raise ValueError(f"no {name} in {directory}; name a directory that stage 4 or export_ir wrote")
    try:
        manifest = _manifest(json.loads((directory / NAME).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{directory / NAME} is damaged ({error}); export the model again") from error
    for name in IR_FILES:
        if _sha256(directory / name) != manifest.sha256[name]:
            raise ValueError(f"{directory / name} is not the file that was exported: it was changed or cut short; export it again")
    return manifest


def _manifest(content: Any) -> Manifest:
    """Return a JSON value as a manifest, or raise ValueError with what is wrong in it."""
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__}, expected an object")
    found: dict[str, Any] = {field.name: content.get(field.name) for field in dataclasses.fields(Manifest)}
    hashes, made_from = found["sha256"], found["made_from"]
    for name, right, expected in (
        ("schema", found["schema"] == SCHEMA, repr(SCHEMA)),
        ("weights", found["weights"] in WEIGHTS, f"one of {', '.join(WEIGHTS)}"),
        ("kv_cache", found["kv_cache"] in KV_CACHES, f"one of {', '.join(KV_CACHES)}"),
        (
            "sha256",
            isinstance(hashes, dict) and all(isinstance(hashes.get(file), str) for file in IR_FILES),
            f"a hash for each of {', '.join(IR_FILES)}",
        ),
        ("made_from", made_from is None or isinstance(made_from, str), "a hash or null"),
    ):
        if not right:
            raise ValueError(f"{name} {found[name]!r}, expected {expected}")
    return Manifest(**found)


def read_config(directory: Path | str, name: str) -> int:
    """Return a number from the config of the model in a directory: `n_layer`, `n_positions`.

    Raises:
        ValueError: there is no config of a GPT-2.
    """
    try:
        return int(json.loads(Path(directory, "config.json").read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no config.json of a GPT-2 in {directory}; name a directory that stage 4 or export_ir wrote") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
