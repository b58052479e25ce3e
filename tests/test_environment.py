import json
import math
import os
import subprocess
import sys

import pytest
import torch

from gpt2opt import environment

IMPORT = """
import json, sys, time
start = time.perf_counter()
import gpt2opt
spent = time.perf_counter() - start
names = dir(gpt2opt)
print(json.dumps([spent, sorted({name.split(".")[0] for name in sys.modules}), names]))
"""


def import_in_a_fresh_process(code: str = IMPORT) -> list:
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_importing_the_package_loads_nothing_heavy():
    runs = [import_in_a_fresh_process() for _ in range(3)]
    _, modules, _ = runs[0]
    assert not {"torch", "openvino", "transformers", "numpy", "matplotlib", "datasets", "optimum"} & set(modules)
    assert min(spent for spent, _, _ in runs) < 0.3


def test_the_check_for_heavy_modules_would_see_one():
    _, modules, _ = import_in_a_fresh_process(IMPORT.replace("import gpt2opt", "import gpt2opt; gpt2opt.perplexity"))
    assert "torch" in modules


def test_every_public_name_is_there():
    import gpt2opt

    for name in gpt2opt.__all__:
        assert getattr(gpt2opt, name) is not None, name
    with pytest.raises(AttributeError, match="has no attribute 'fly'"):
        gpt2opt.fly  # noqa: B018


@pytest.mark.parametrize("version", [(3, 9), (3, 13), (2, 7), (4, 0)])
def test_another_python_is_refused_with_the_reason(version):
    with pytest.raises(ImportError, match=r"Python .* found, 3\.10, 3\.11 or 3\.12 expected: .*numpy<2"):
        environment.check_python(version)


def test_the_stack_at_hand_passes_and_another_is_refused_with_the_reason(monkeypatch):
    environment.check_stack()
    oldest = {"optimum-intel": "1.21.0", "neural-compressor": "3.7.1", "transformers": "4.45.2", "numpy": "1.26.4", "torch": "2.3.1+cu121"}
    monkeypatch.setattr(environment, "installed", {**oldest, "openvino": "2026.4.1"}.get)
    environment.check_stack()  # what the course has
    found = {**{name: environment.installed(name) for name in environment.STACK}, "optimum-intel": "2.1.0", "transformers": None}
    monkeypatch.setattr(environment, "installed", found.get)
    with pytest.raises(ImportError, match=r"optimum-intel 2\.1\.0, expected ==1\.27\.\* \(.*INCQuantizer.*transformers not installed"):
        environment.check_stack()


@pytest.mark.parametrize(("oldest", "holds"), [("4.9", True), ("4.57.1", True), ("4.57.2", False), ("5", False)])
def test_versions_are_compared_by_their_numbers(oldest, holds, monkeypatch):
    monkeypatch.setattr(environment, "version", lambda package: "4.57.1")
    assert environment.at_least("transformers", oldest) is holds


def test_the_machine_is_described():
    facts = environment.describe()
    assert facts["threads"] >= 1
    assert facts["memory_bytes"] > 1e8
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or facts["versions"]["torch"] == torch.__version__
    json.dumps(facts)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (["avx2"], "avx2"), (["avx2", "avx512f"], "avx512"), (["avx2", "avx512f", "avx512_vnni", "avx512_bf16"], "avx512_vnni"),
        (["avx2", "avx_vnni"], "avx_vnni"), (["avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16"], "amx"),
        (["asimddp", "i8mm"], "i8mm"), (["asimddp"], "asimddp"), ([], "other"),
    ],
)  # fmt: skip
def test_a_record_tells_the_kind_of_its_cpu(flags, kind):
    assert environment.cpu_kind(flags) == kind


def test_the_label_of_a_machine_names_its_kind():
    facts = {"cpu": "AMD EPYC", "cpu_flags": ["avx2", "avx512_vnni"], "threads": 2}
    assert environment.machine_label(facts) == "AMD EPYC (AVX-512 VNNI), 2 threads"


def test_where_the_system_does_not_tell_the_instructions_nobody_knows_them(monkeypatch):
    monkeypatch.setattr(environment, "_cpuinfo", lambda: {"processor": "0", "model name": "a CPU"})
    assert environment.has_int8_dot_product() is environment.has_bf16() is None
    facts = environment.describe.__wrapped__()
    assert facts["cpu_flags"] is None
    assert environment.cpu_kind(facts["cpu_flags"]) == "other"
    assert "(instructions not known: the system does not name them)" in environment.machine_label(facts)
    monkeypatch.setattr(environment, "_cpuinfo", lambda: {"flags": "avx2"})
    assert environment.has_int8_dot_product() is environment.has_bf16() is False
    monkeypatch.setattr(environment, "_cpuinfo", lambda: {"Features": "asimddp"})
    assert environment.has_int8_dot_product() is True


@pytest.mark.parametrize(("cores", "quota", "expected"), [(8, math.inf, 8), (8, 2.9, 2), (8, 0.5, 1), (2, 16, 2)])
def test_threads_are_as_many_as_cores_and_quota_allow(monkeypatch, cores, quota, expected):
    monkeypatch.setattr(environment, "cores", lambda: cores)
    monkeypatch.setattr(environment, "cpu_quota", lambda: quota)
    assert environment.threads() == expected


QUANTIZE_AND_EXPORT = """
import sys
from gpt2opt import prepare_calibration_dataset, quantize_int8
from gpt2opt.sources.models import load_model
tokenizer, model = load_model(sys.argv[1])
calibration = prepare_calibration_dataset([open(sys.argv[2]).read()], tokenizer, length=32, limit=8)
quantize_int8(model, tokenizer, calibration, sys.argv[3], "w8")
"""


@pytest.mark.slow
def test_nothing_is_left_in_the_home_of_a_user(model_dir, text_file, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NNCF", "LOG_LEVEL", "HABANA", "HF_HOME")) and name != "CI"
    }
    command = [sys.executable, "-c", QUANTIZE_AND_EXPORT, str(model_dir), str(text_file), str(tmp_path / "int8")]
    done = subprocess.run(command, env={**kept, "HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "int8" / "openvino_model.xml").exists()
    assert not [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in path.parts]


@pytest.mark.parametrize(
    ("before", "asked", "expected"),
    [
        ("", {}, "GOMP_SPINCOUNT=1000"),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY=ACTIVE"),
        ("", {"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT=7"),
        ("import torch", {}, None),  # libgomp has read its environment: to set it now would say what is not so
    ],
)
def test_threads_that_wait_sleep_soon_unless_the_user_or_a_loaded_torch_says_otherwise(before, asked, expected):
    code = f"""
{before}
import gpt2opt, json
from gpt2opt.environment import describe, wait_policy
print(json.dumps([wait_policy(), describe()["wait_policy"]]))
"""
    variables = {name: value for name, value in os.environ.items() if name not in environment.WAIT_VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**variables, **asked})
    assert json.loads(done.stdout) == [expected, expected]


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
def test_libgomp_takes_the_policy_over():
    """OMP_DISPLAY_ENV makes libgomp print what it goes by when torch loads it, which is after our import."""
    variables = {name: value for name, value in os.environ.items() if name not in environment.WAIT_VARIABLES}
    for code, spins in (("import gpt2opt, torch", "'1000'"), ("import torch", "'300000'")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**variables, "OMP_DISPLAY_ENV": "verbose"}
        )
        assert f"GOMP_SPINCOUNT = {spins}" in done.stderr
