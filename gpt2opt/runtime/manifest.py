"""The manifest beside an IR: the types of its weights and of its KV cache, and hashes that reveal a changed or truncated file."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from gpt2opt.settings import QUANTIZE

NAME = "gpt2opt.json"
SCHEMA = "gpt2opt.ir/4"
IR_NAME, IR_WEIGHTS = IR_FILES = ("openvino_model.xml", "openvino_model.bin")


@dataclass(frozen=True)
class Manifest:
    """What is known of an exported IR.

    weights: the type that the block matmuls are stored in, `f32`, `i8` or `i4`. kv_cache: the type that keys and values are to be kept in,
    `f32`, `f16` or `u8`. sha256: of each file of the IR, by its name. made_from: SHA-256 of the weight files that the exported model was
    loaded from, see `storage.hash_weights`; None if that is not known.
    """

    weights: str
    kv_cache: str
    sha256: dict[str, str]
    made_from: str | None = None
    schema: str = SCHEMA


def is_ir(directory: Path | str) -> bool:
    """Return whether a directory holds an IR."""
    return Path(directory, IR_NAME).exists()


def ir_of_run(directory: Path | str) -> Path:
    """Return the folder of a run's INT8 model, given that of the run; any other directory as it is."""
    int8 = Path(directory, QUANTIZE)
    return int8 if is_ir(int8) and not is_ir(directory) else Path(directory)


def write_manifest(directory: Path, weights: str, kv_cache: str, made_from: str | None) -> None:
    """Write the manifest of the IR in a directory, with the hashes of its files; see `Manifest` for the arguments."""
    hashes = {name: _sha256(directory / name) for name in IR_FILES}
    content = dataclasses.asdict(Manifest(weights, kv_cache, hashes, made_from))
    (directory / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(directory: Path | str) -> Manifest:
    """Read what `export_ir` wrote beside an IR; ValueError names a file that is missing, was changed or was truncated."""
    directory = Path(directory)
    for name in (*IR_FILES, NAME):
        if not (directory / name).is_file():
            raise ValueError(f"no {name} in {directory}; name a directory that stage 4 or export_ir wrote")
    try:
        content = json.loads((directory / NAME).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}, expected {SCHEMA!r}")
        manifest, hashes = Manifest(**content), {name: content["sha256"][name] for name in IR_FILES}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{directory / NAME} is damaged ({error}); export the model again") from error
    for name, expected in hashes.items():
        if _sha256(directory / name) != expected:
            raise ValueError(f"{directory / name} is not the file that was exported: it was changed or cut short; export it again")
    return manifest


def read_config(directory: Path | str, name: str) -> int:
    """Return a number from the config of the model in a directory, or raise ValueError: there is no config of a GPT-2."""
    try:
        return int(json.loads(Path(directory, "config.json").read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no config.json of a GPT-2 in {directory}; name a directory that stage 4 or export_ir wrote") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):  # a file may be as large as the memory
            digest.update(block)
    return digest.hexdigest()
