"""The checks, each a name and a function that returns rows. None imports more than the standard library before it knows that it can."""

import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpt2opt import environment
from gpt2opt.apps.doctor.finding import FAILS, NOTE, Finding, measured
from gpt2opt.apps.doctor.needs import check_disk, check_ram, total_ram
from gpt2opt.cgroup import cpu_quota, memory_limit
from gpt2opt.report.table import gigabytes, milliseconds
from gpt2opt.versions import requirements


@dataclass(frozen=True)
class Check:
    """A check. short: it belongs to the short form, which asks nothing of the network."""

    name: str
    function: Callable[[], list[Finding]]
    short: bool = True


def check_python() -> list[Finding]:
    try:
        environment.check_python(sys.version_info[:2])
    except ImportError as error:
        return [Finding("Python", platform.python_version(), FAILS, str(error))]
    return [Finding("Python", platform.python_version())]


def check_packages() -> list[Finding]:
    """Compare the installed versions with requirements.txt: a row for each that is missing, too new or older than what was measured."""
    rows = {}
    for name, wanted in requirements().items():
        found = environment.installed(name)
        try:
            problem, untested = wanted.problem(found), wanted.is_untested(found)
        except ImportError as error:
            rows["versions"] = Finding("versions", "not compared", FAILS, str(error))
            continue
        if untested:
            do = f"may work; measured with {wanted.bounds}: `pip install '{wanted.line}'` brings that"
            rows[name] = Finding(name, f"{found}", NOTE, do)
        elif problem:
            reason = f": {wanted.reason}" if wanted.reason else ""
            rows[name] = Finding(name, found or "not installed", FAILS, f"`pip install '{wanted.line}'`{reason}")
    return list(rows.values()) or [Finding("packages", f"all {len(requirements())} in the versions that work together")]


def check_cpu() -> list[Finding]:
    flags = environment.cpu_flags()
    return [
        Finding("CPU", f"{environment.cpu_name()} ({environment.kind_label(flags)})"),
        Finding("INT8 on this CPU", int8_gain(environment.cpu_kind(flags))),
    ]


def int8_gain(kind: str) -> str:
    """Say what INT8 gained over FP32 in the committed race on a kind of CPU."""
    race = measured()["int8"].get(kind)
    if race is None:
        return "not measured on this kind of CPU"
    shown = ", ".join(f"{figure} {_gain(race[figure])}" for figure in ("TTFT", "TPOT"))
    return f"{shown} ({race['size']}, {race['prompt_tokens']} + {race['new_tokens']} tokens)"


def _gain(figure: dict[str, Any]) -> str:
    if figure["times"] is None:
        return f"{milliseconds(figure['int8_s'])} ms, gain not measured, since no FP32 engine was in the race"
    value, low, high = figure["times"]
    return f"{value:.1f} [{low:.1f}, {high:.1f}] times as fast as {figure['fp32_engine']}"


def check_threads() -> list[Finding]:
    return [Finding("threads", f"{environment.threads()} of {environment.cores()} cores")]


def check_container() -> list[Finding]:
    """Say what a container grants of what the machine shows."""
    quota, limit, total = cpu_quota(), memory_limit(), total_ram()
    limits = []
    if quota < (os.cpu_count() or 1):
        limits.append(f"CPU time of {quota:.2g} of {os.cpu_count()} cores")
    if total and limit < total:
        limits.append(f"{gigabytes(round(limit))} of {gigabytes(total)} of RAM")
    return [Finding("container", f"grants {' and '.join(limits)}" if limits else "no limit of CPU time or RAM")]


def check_gpu() -> list[Finding]:
    """Show the GPUs, and say so if torch can't use them."""
    gpus = environment.nvidia_smi("name", "driver_version", "memory.total", "memory.free")
    if not gpus:
        return [Finding("GPU", "none seen: stages 1 to 3 run FP16 on the CPU, and most CPUs emulate it, slowly")]
    rows = [
        Finding("GPU", f"{gpu['name']}, driver {gpu['driver_version']}, {gpu['memory.free']} of {gpu['memory.total']} of VRAM free")
        for gpu in gpus
    ]
    if environment.installed("torch") and (problem := _unused(cuda_of_torch())):
        rows[0] = Finding("GPU", rows[0].found, NOTE, problem)
    return rows


def _unused(cuda: str | None) -> str | None:
    """Return why torch, built for a version of CUDA or for none, does not use a GPU, and what to do; None if it does."""
    if cuda is None:
        return (
            f"torch {environment.installed('torch')} is built for CPUs and leaves it idle: install a build for CUDA by "
            "`pip install --force-reinstall torch`, without an index of CPU builds"
        )
    try:
        import torch

        used = torch.cuda.is_available()
    except (ImportError, OSError, RuntimeError):  # a damaged installation raises any of these
        used = False
    return None if used else f"torch does not find it: a driver for CUDA {cuda} is needed, and CUDA_VISIBLE_DEVICES must not hide the GPU"


def cuda_of_torch() -> str | None:
    """Return the version of CUDA that the installed torch is built for, None for none. torch itself is not imported: that takes seconds."""
    spec = find_spec("torch")
    try:
        text = Path(spec.origin or "").with_name("version.py").read_text(encoding="utf-8") if spec else ""
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def check_sources() -> list[Finding]:
    """Ask the hub, and list what of it is in the local cache; say so if `gpt2` or WikiText-2 can't be had."""
    try:
        from gpt2opt.sources.hub import TIMEOUT_S, hub_answers

        answers, cached = hub_answers(), in_cache()
    except ImportError as error:
        return [Finding("hub and cache", f"not known: {error}")]
    missing = {"gpt2": "the bundled model", "WikiText-2": "documentation of installed packages"}
    stand_ins = [f"{stand_in} stands in for {name}" for name, stand_in in missing.items() if name not in cached]
    hub = {True: "answers", False: f"does not answer within {TIMEOUT_S:.0f} s", None: "not asked: HF_HUB_OFFLINE is set"}[answers]
    rows = [Finding("hub", hub), Finding("local cache", f"holds {', '.join(cached)}" if cached else "holds no GPT-2 and no WikiText-2")]
    if stand_ins and not answers:
        do = f"{'; '.join(stand_ins)}: connect, or set GPT2OPT_MODEL and GPT2OPT_TEXT"
        rows[1] = Finding("local cache", rows[1].found, NOTE, do)
    return rows


def in_cache() -> list[str]:
    """Return which of the models and texts that this project names are in the local cache, whole."""
    from gpt2opt.apps.doctor.needs import MAIN, SIZES
    from gpt2opt.sources import models, texts
    from gpt2opt.sources.hub import cached_snapshot

    found = [name for name in SIZES if name != MAIN and (path := cached_snapshot(name, models.PATTERNS)) and models.is_complete(path)]
    wikitext = cached_snapshot(texts.WIKITEXT, texts.WIKITEXT_PATTERNS, repo_type="dataset")
    return [*found, "WikiText-2"] if wikitext and texts.is_complete(wikitext / texts.WIKITEXT_FOLDER) else found


CHECKS = (
    Check("Python", check_python),
    Check("packages", check_packages),
    Check("CPU", check_cpu),
    Check("threads", check_threads),
    Check("container", check_container),
    Check("GPU", check_gpu),
    Check("RAM", check_ram),
    Check("disk", check_disk),
    Check("sources", check_sources, short=False),
)
