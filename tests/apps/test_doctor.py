"""`gpt2opt doctor`: each thing that may be wrong with a machine is simulated, and has to be named with what to do."""

import json
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import metadata

import pytest
import torch
from packaging.requirements import Requirement as Packaged
from packaging.specifiers import SpecifierSet
from transformers import GPT2Config, GPT2LMHeadModel

import gpt2opt
from experiments import docs
from experiments.contract import read_result_of
from gpt2opt import environment, versions
from gpt2opt.apps.doctor import checks, needs
from gpt2opt.apps.doctor.checks import (
    FAILS,
    FITS,
    NOTE,
    OK,
    check_container,
    check_cpu,
    check_gpu,
    check_packages,
    check_python,
    check_sources,
)
from gpt2opt.apps.doctor.needs import BUNDLED, GENERATE, PARAMETERS, PEAK_BYTES, disk_bytes, ram_needs
from gpt2opt.apps.ui import choices
from gpt2opt.cli import main
from gpt2opt.environment import cpu_quota, memory_left, memory_limit
from gpt2opt.run.record import read_record
from gpt2opt.settings import QUANTIZE
from gpt2opt.sources.models import BUNDLED as FOLDER
from gpt2opt.versions import requirements
from tests.conftest import ROOT
from tests.test_control_groups import machine

LIST = ROOT / "requirements.txt"


LOCKED = dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    """What the machine of the tests has must not decide: there is no GPU, and what is installed is what `make` installs."""
    monkeypatch.setattr(environment, "nvidia_smi", lambda *fields: [])
    monkeypatch.setattr(environment, "installed", LOCKED.get)


def install(monkeypatch, **versions: str | None) -> None:
    """Let these versions be installed instead; `_` stands for `-` in names."""
    changed = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(environment, "installed", (LOCKED | changed).get)


def test_the_window_is_read_from_requirements_txt_with_its_reasons():
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    assert [wanted.line for wanted in requirements().values()] == [re.split(r"\s+#", line)[0].strip() for line in lines]
    assert all(Packaged(wanted.line).specifier == SpecifierSet(wanted.bounds) for wanted in requirements().values())
    assert "INCQuantizer" in requirements()["optimum-intel"].reason
    assert versions.LIST.resolve() == LIST, "the list in the package is a link to the one at the root"
    assert set(environment.STACK) <= set(requirements())


@pytest.mark.parametrize(
    ("name", "found", "state"),
    [
        ("optimum-intel", "1.27", OK), ("optimum-intel", "1.27.3", OK), ("optimum-intel", "1.28.0", FAILS), ("optimum-intel", "1.9", NOTE),
        ("transformers", "4.100", OK), ("transformers", "4.56", NOTE), ("transformers", "3.9", FAILS), ("transformers", "5.0rc1", FAILS),
        ("torch", "2.13.0+cpu", OK), ("torch", "2.13.0a0+gitabc", OK), ("ipykernel", "7.1.0", FAILS), ("ipykernel", "7.4.0", OK),
        ("ipykernel", "6.16", NOTE), ("six", "0.5", OK), ("six", None, FAILS),
    ],
)  # fmt: skip
def test_versions_are_judged_by_their_numbers(name, found, state):
    wanted = requirements()[name]
    assert (wanted.problem(found) is None, wanted.is_untested(found)) == (state == OK, state == NOTE)


def test_without_packaging_what_is_missing_is_listed_and_one_line_says_that_versions_were_not_compared(monkeypatch):
    install(monkeypatch, packaging=None, torch=None)
    monkeypatch.setitem(sys.modules, "packaging.specifiers", None)
    rows = {finding.what: finding for finding in check_packages()}
    assert set(rows) == {"packaging", "torch", "versions"}
    assert (rows["versions"].state, "`pip install packaging`" in rows["versions"].do) == (FAILS, True)
    with pytest.raises(ImportError, match="packaging is not installed, which compares versions"):
        environment.check_stack()


def test_the_python_that_is_refused_is_the_one_that_the_package_does_not_declare(monkeypatch):
    (low, high) = environment.PYTHON
    assert metadata("gpt2opt")["Requires-Python"].split(",") in (
        [f">={low[0]}.{low[1]}", f"<{high[0]}.{high[1]}"],
        [f"<{high[0]}.{high[1]}", f">={low[0]}.{low[1]}"],
    )
    assert check_python()[0].state == OK
    monkeypatch.setattr(sys, "version_info", (3, 13, 1, "final", 0))
    (finding,) = check_python()
    assert (finding.state, "make PYTHON=python3.11 run" in finding.do) == (FAILS, True)


@pytest.mark.parametrize(
    ("name", "version", "state", "do"),
    [
        ("optimum_intel", "2.1.0", FAILS, r"`pip install 'optimum-intel\[openvino\]==1\.27\.\*'`: .*INCQuantizer; 2\.0 removed it"),
        ("numpy", "2.5.2", FAILS, r"`pip install 'numpy>=1\.26,<2'`: neural-compressor 3\.7 holds it there"),
        ("transformers", "5.1.0", FAILS, r"`pip install 'transformers>=4\.57,<5'`: version 5 removed GPT-2 head pruning"),
        ("transformers", None, FAILS, "`pip install 'transformers.*head pruning"),
        ("torch", None, FAILS, r"`pip install 'torch>=2\.13,<3'`"),
        ("torch", "2.11.0+cu128", NOTE, r"measured with >=2\.13,<3"),
        ("openvino", "2025.4.0", FAILS, "`pip install 'openvino"),
    ],
)
def test_a_package_that_is_missing_too_new_or_too_old_is_named_with_the_fix_and_the_reason(name, version, state, do, monkeypatch):
    install(monkeypatch, **{name: version})
    (finding,) = check_packages()
    assert (finding.what, finding.found, finding.state) == (name.replace("_", "-"), version or "not installed", state)
    assert re.search(do, finding.do)
    if state == FAILS:
        with pytest.raises(ImportError, match=name.replace("_", "-")):  # a run refuses it too, in the same words
            environment.check_stack()
    elif state == NOTE:
        environment.check_stack()


def test_the_versions_that_make_installs_are_all_right():
    (finding,) = check_packages()
    assert (finding.state, finding.found) == (OK, f"all {len(requirements())} in the versions that work together")


@pytest.mark.parametrize(
    ("flags", "label", "gain"),
    [
        ({"avx2"}, "AVX2 alone", "TTFT 2.6 times as fast"),
        ({"avx2", "avx512_vnni", "amx_int8"}, "AMX", "not measured on this kind of CPU"),
        (None, "instructions not known", "not measured on this kind of CPU"),
    ],
)
def test_the_kind_of_cpu_is_named_and_what_int8_gained_on_it_in_the_race(flags, label, gain, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "cpu_flags", lambda: flags)
    monkeypatch.setattr(checks, "MEASURED", tmp_path / "measured.json")
    checks.MEASURED.write_text('{"avx2": "TTFT 2.6 times as fast"}')
    kind, int8, _ = check_cpu()
    assert label in kind.found
    assert int8.found == gain


def test_a_gain_names_the_fp32_engine_and_says_so_if_there_was_none():
    known = json.loads(checks.MEASURED.read_text())
    gain = r"(?:TTFT|TPOT) \d\.\d \[\d\.\d, \d\.\d\] times as fast as [\w ]+ FP32"
    assert re.fullmatch(rf"{gain}, {gain} \(size of gpt2, 512 \+ 128 tokens\)", known["avx2"])
    assert "ms, gain not measured, since no FP32 engine was in the race" in known["avx512_vnni"]


def test_what_the_library_knows_of_the_committed_results_is_what_they_say():
    assert (docs.ROOT / docs.OF_DOCTOR).read_text() == docs.measured(docs.RESULTS), "`python -m experiments docs` writes it again"


V2 = {
    "cpu.max": "150000 100000\n",
    "memory.max": "2000000000\n",
    "memory.current": "900000000\n",
    "memory.stat": "inactive_file 400000000\n",
}
V1 = {
    "cpu/a/cpu.cfs_quota_us": "150000\n", "cpu/a/cpu.cfs_period_us": "100000\n", "memory/a/memory.limit_in_bytes": "2000000000\n",
    "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n", "memory/a/memory.usage_in_bytes": "900000000\n",
    "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 400000000\n",
}  # fmt: skip


@pytest.mark.parametrize(("memberships", "files"), [("0::/\n", V2), ("3:memory:/a\n2:cpu:/a\n0::/\n", V1)], ids=["version 2", "version 1"])
def test_a_container_is_told_against_what_the_machine_shows(memberships, files, tmp_path, monkeypatch):
    root = machine(tmp_path, memberships, files)
    for module, functions in ((checks, (cpu_quota, memory_limit)), (needs, (memory_left,))):
        for function in functions:
            monkeypatch.setattr(module, function.__name__, partial(function, root))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\n")
    monkeypatch.setattr(needs, "MEMINFO", meminfo)
    (finding,) = check_container()
    assert finding.found == "grants CPU time of 1.5 of 8 cores and 2.0 GB of 16.4 GB of RAM"
    assert needs.free_ram() == 1_500_000_000


def test_without_limits_the_machine_is_what_counts(tmp_path, monkeypatch):
    for name, function in (("cpu_quota", cpu_quota), ("memory_limit", memory_limit)):
        monkeypatch.setattr(checks, name, partial(function, tmp_path))
    assert check_container()[0].found == "no limit of CPU time or RAM"
    assert memory_left(tmp_path) == float("inf")


GPU = {"name": "NVIDIA T4", "driver_version": "550.1", "memory.total": "15360 MiB", "memory.free": "15000 MiB"}


def test_a_gpu_that_torch_is_not_built_for_is_told(monkeypatch):
    assert check_gpu()[0].found.startswith("none seen")
    monkeypatch.setattr(environment, "nvidia_smi", lambda *fields: [GPU])
    monkeypatch.setattr("torch.version.cuda", None)
    (finding,) = check_gpu()
    assert finding.found == "NVIDIA T4, driver 550.1, 15000 MiB of 15360 MiB of VRAM free"
    assert (finding.state, "is built for CPUs" in finding.do) == (NOTE, True)
    monkeypatch.setattr("torch.version.cuda", "12.8")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "a driver for CUDA 12.8 is needed" in check_gpu()[0].do
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert check_gpu()[0].state == OK
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch can't be imported" in check_gpu()[0].do


def test_gpus_are_listed_by_nvidia_smi_and_a_tool_without_a_driver_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.undo()
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for script, expected in ((f"echo '{', '.join(GPU.values())}'", [GPU]), ("echo 'no driver'; exit 9", [])):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        assert environment.nvidia_smi(*GPU) == expected


@pytest.mark.parametrize(
    ("answers", "cached", "hub", "do"),
    [
        (True, [], "answers", ""),
        (
            False,
            [],
            "does not answer within 3 s",
            "the bundled model replaces gpt2; documentation of installed packages replaces WikiText-2",
        ),
        (None, ["gpt2"], "not asked: HF_HUB_OFFLINE is set", "documentation of installed packages replaces WikiText-2: connect"),
        (False, ["gpt2", "WikiText-2"], "does not answer", ""),
    ],
)
def test_the_hub_and_the_cache_are_told_and_what_stands_in(answers, cached, hub, do, monkeypatch):
    monkeypatch.setattr("gpt2opt.sources.hub.hub_answers", lambda: answers)
    monkeypatch.setattr(checks, "in_cache", lambda: cached)
    first, second = check_sources()
    assert hub in first.found
    assert all(name in second.found for name in cached)
    assert do in second.do
    assert second.state == (NOTE if do else OK)
    assert first.state == (NOTE if answers is False else OK), "a hub that does not answer is not ok"


def test_only_what_is_whole_counts_as_cached(tmp_path, monkeypatch):
    for name, files in {"gpt2": ("model.safetensors", "tokenizer.json"), "gpt2-medium": ("model.safetensors",)}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    monkeypatch.setattr("gpt2opt.sources.hub.cached_snapshot", lambda name, *_, **__: path if (path := tmp_path / name).is_dir() else None)
    assert checks.in_cache() == ["gpt2"]


def test_the_sizes_are_those_of_the_models():
    shapes = {"gpt2": (12, 768), "gpt2-medium": (24, 1024), "gpt2-large": (36, 1280)}
    found = {BUNDLED: GPT2Config.from_pretrained(FOLDER)} | {
        name: GPT2Config(n_layer=n, n_embd=w, n_head=16) for name, (n, w) in shapes.items()
    }
    with torch.device("meta"):
        assert {name: GPT2LMHeadModel(config).num_parameters() for name, config in found.items()} == PARAMETERS
    assert set(choices.SIZES) == set(PARAMETERS)


def test_the_needs_cover_what_the_race_and_the_run_measured_and_not_twice_as_much():
    needs = {(need.size, need.stage): need.bytes for need in ram_needs()}
    race = read_result_of("race", docs.RESULTS / "avx2")
    record = read_record(docs.RESULTS / "avx2" / "run.json")
    for name, stage, taken in (
        ("gpt2", QUANTIZE, race.ours.prepare_peak_rss_bytes),
        ("gpt2", GENERATE, race.ours.peak_rss_bytes),
        (BUNDLED, GENERATE, record.measured("INT8").memory.peak_rss_bytes),
    ):
        assert taken <= needs[name, stage] <= 2 * taken, (name, stage)


def test_a_larger_model_needs_more_at_every_stage():
    for stage in PEAK_BYTES:
        needed = [need.bytes for need in ram_needs() if need.stage == stage]
        assert needed == sorted(set(needed))
        assert [need.measured for need in ram_needs() if need.stage == stage] == [True, True, False, False]


def test_the_disk_covers_every_model_of_the_committed_run():
    record = read_record(docs.RESULTS / "avx2" / "run.json")
    sizes = [measurement.memory.weight_bytes for measurement in record.models.values() if measurement.memory]
    untimed = len(record.models) - len(sizes)  # of these the weights in FP16 are on disk
    assert sum(sizes) + untimed * record.measured("Baseline").memory.weight_bytes + 2 * max(sizes) <= disk_bytes(BUNDLED)


def run(capsys, *arguments: str) -> tuple[int, list[str]]:
    code = main(["doctor", *arguments])
    return code, capsys.readouterr().out.splitlines()


def test_a_machine_that_fits_gets_exit_code_0_a_table_and_json(capsys):
    code, lines = run(capsys)
    answer = json.loads(lines[-1])
    assert (code, answer["can_run"]) == (0, True)
    assert set(answer) == {"can_run", "findings", "free_ram_bytes", "free_disk_bytes", "ram_needs", "disk_needs"}
    assert {
        "Python",
        "packages",
        "CPU",
        "INT8 on this CPU",
        "threads",
        "container",
        "GPU",
        "free RAM",
        "free disk",
        "hub",
        "local cache",
    } == {finding["what"] for finding in answer["findings"]}
    assert len(answer["ram_needs"]) == len(PARAMETERS) * len(PEAK_BYTES)
    assert any(line.startswith("RAM, 3-finetune") for line in lines)


def test_in_short_a_machine_that_fits_gets_one_line_from_the_command_and_from_the_function(capsys):
    assert run(capsys, "--short") == (0, [FITS])
    assert gpt2opt.check_machine() == FITS


@pytest.mark.parametrize("what", ["free RAM", "free disk", "optimum-intel"])
def test_what_keeps_the_notebook_from_running_gives_exit_code_1_and_one_line(what, monkeypatch, capsys):
    if what == "free RAM":
        monkeypatch.setattr(needs, "memory_left", lambda: 300_000_000)
    elif what == "free disk":
        monkeypatch.setattr(needs.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000}))
    else:
        install(monkeypatch, optimum_intel="2.0.0")
    code, (line,) = run(capsys, "--short")
    assert (code, line.startswith(f"{what}, ")) == (1, True)
    code, lines = run(capsys)
    assert (code, json.loads(lines[-1])["can_run"]) == (1, False)
    if what == "free RAM":
        assert "too much here" in "\n".join(lines)


def test_something_to_know_is_no_reason_to_fail(monkeypatch, capsys):
    install(monkeypatch, torch="2.11.0")
    code, lines = run(capsys, "--short")
    assert (code, len(lines), lines[-1]) == (0, 2, FITS)
    assert lines[0].startswith("torch, 2.11.0: may work")


BARE = """
import json, sys, time
HIDDEN = {"torch", "numpy", "transformers", "openvino", "psutil", "requests", "huggingface_hub", "scipy", "packaging"}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Missing())
from gpt2opt import environment
environment.installed = lambda name: None
from gpt2opt.cli import main
start = time.perf_counter()
code = main(["doctor"])
print(json.dumps([code, time.perf_counter() - start, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_where_nothing_is_installed_it_says_so_within_two_seconds():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *_, answer, last = done.stdout.splitlines()
    code, seconds, modules = json.loads(last)
    assert code == 1
    assert seconds < 2
    assert not {"torch", "numpy", "transformers", "openvino"} & set(modules)
    findings = {finding["what"]: finding for finding in json.loads(answer)["findings"]}
    assert set(requirements()) <= set(findings)
    assert findings["torch"]["found"] == "not installed"
    assert findings["hub and cache"]["found"].startswith("not known: No module named")
