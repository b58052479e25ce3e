"""The manifest beside an IR: damaged files and damaged manifests are refused by name."""

import json
import shutil

import pytest

from gpt2opt.runtime.ir_model import load_ir


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin", "gpt2opt.json"])
def test_a_missing_changed_or_cut_file_is_refused_by_name(name, quantized, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(quantized[0], folder)
    content = (folder / name).read_bytes()
    for damaged in (content[:-100], content[:500] + b"?" + content[501:] if name != "gpt2opt.json" else b"{}"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_ir(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no {name} in".replace(".", r"\.")):
        load_ir(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": ["a", "b"]}, "list indices must be integers"),
        ({"sha256": {"openvino_model.xml": "a"}}, "openvino_model.bin"),
        ({"schema": "gpt2opt.ir/3"}, "schema 'gpt2opt.ir/3', expected 'gpt2opt.ir/4'"),
        (None, "list indices must be integers"),
    ],
)
def test_a_manifest_of_other_types_is_refused_in_one_line(change, message, quantized, tmp_path):
    shutil.copytree(quantized[0], tmp_path / "ir")
    path = tmp_path / "ir" / "gpt2opt.json"
    path.write_text(json.dumps([] if change is None else json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"gpt2opt.json is damaged .*{message}.*; export the model again"):
        load_ir(tmp_path / "ir")
