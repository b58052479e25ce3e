"""What may be wrong with a machine: checks that return rows, and what they found together, whole or in short.

None imports more than the standard library before it knows that it can.
"""

import dataclasses
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt import environment
from gpt2opt.apps.doctor.needs import BUNDLED, PARAMETERS, disk_bytes, free_disk, free_ram, meminfo, ram_needs
from gpt2opt.environment import cpu_quota, memory_limit
from gpt2opt.report.table import Table, gigabytes, table
from gpt2opt.versions import requirements

OK, NOTE, FAILS = "ok", "note", "fails"
"""`NOTE`: the notebook runs on the bundled model, but the user may want to act. `FAILS`: it can't run before they do."""
MEASURED = Path(__file__).parent / "measured.json"
"""What INT8 gains on each kind of CPU, from the committed results; `python -m experiments docs` writes it."""
FITS = "This machine can run the notebook: the Python and the packages fit, and RAM and disk suffice for the bundled model."


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, what was found, and in one line what to do and why; nothing to do where all is well."""

    what: str
    found: str
    state: str = OK
    do: str = ""


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
            if wanted.is_untested(found):
                do = f"may work; measured with {wanted.bounds}: `pip install '{wanted.line}'` brings that"
                rows[name] = Finding(name, f"{found}", NOTE, do)
            elif wanted.problem(found):
                do = f"`pip install '{wanted.line}'`" + (f": {wanted.reason}" if wanted.reason else "")
                rows[name] = Finding(name, found or "not installed", FAILS, do)
        except ImportError as error:
            rows["versions"] = Finding("versions", "not compared", FAILS, str(error))
    return list(rows.values()) or [Finding("packages", f"all {len(requirements())} in the versions that work together")]


def check_cpu() -> list[Finding]:
    """Name the CPU and its kind, what INT8 gained over FP32 in the committed race on that kind, and the threads."""
    flags = environment.cpu_flags()
    gains = json.loads(MEASURED.read_text(encoding="utf-8"))
    return [
        Finding("CPU", f"{environment.cpu_name()} ({environment.kind_label(flags)})"),
        Finding("INT8 on this CPU", gains.get(environment.cpu_kind(flags), "not measured on this kind of CPU")),
        Finding("threads", f"{environment.threads()} of {environment.cores()} cores"),
    ]


def check_container() -> list[Finding]:
    """Say what a container grants of what the machine shows."""
    quota, limit, total = cpu_quota(), memory_limit(), meminfo("MemTotal")
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
    found = [f"{gpu['name']}, driver {gpu['driver_version']}, {gpu['memory.free']} of {gpu['memory.total']} of VRAM free" for gpu in gpus]
    problem = _why_unused()
    return [Finding("GPU", found[0], NOTE if problem else OK, problem), *(Finding("GPU", other) for other in found[1:])]


def _why_unused() -> str:
    """Return why torch does not use a GPU that is there, and what to do; nothing if it does."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # a damaged installation raises any of these
        return f"torch can't be imported ({error}); `pip install --force-reinstall torch`"
    if torch.version.cuda is None:
        idle = f"torch {torch.__version__} is built for CPUs and leaves it idle"
        return f"{idle}: install a build for CUDA by `pip install --force-reinstall torch`, without an index of CPU builds"
    if torch.cuda.is_available():
        return ""
    return f"torch does not find it: a driver for CUDA {torch.version.cuda} is needed, and CUDA_VISIBLE_DEVICES must not hide the GPU"


def check_ram_and_disk() -> list[Finding]:
    """Compare what is free with what the bundled model needs."""
    ram, stage = max((need.bytes, need.stage) for need in ram_needs() if need.size == BUNDLED)
    disk = disk_bytes(BUNDLED)
    close_programs = f"stage {stage} of the {BUNDLED} model takes about {gigabytes(ram)}; close programs, or give the container more"
    make_room = f"free {gigabytes(disk)} on the disk of {Path.cwd().name}: a run writes that"
    return [_enough("free RAM", free_ram(), ram, close_programs), _enough("free disk", free_disk(), disk, make_room)]


def _enough(what: str, free: int | None, needed: int, do: str) -> Finding:
    if free is None:
        return Finding(what, "not known: the system does not say")
    return Finding(what, gigabytes(free)) if free >= needed else Finding(what, gigabytes(free), FAILS, do)


def check_sources() -> list[Finding]:
    """Ask the hub, and list what of it is in the local cache; say so if `gpt2` or WikiText-2 can't be had."""
    try:
        from gpt2opt.sources.hub import TIMEOUT_S, hub_answers

        answers, cached = hub_answers(), in_cache()
    except ImportError as error:
        return [Finding("hub and cache", f"not known: {error}")]
    missing = {"gpt2": "the bundled model", "WikiText-2": "documentation of installed packages"}
    replaced = [f"{other} replaces {name}" for name, other in missing.items() if name not in cached]
    hub = {True: "answers", False: f"does not answer within {TIMEOUT_S:.0f} s", None: "not asked: HF_HUB_OFFLINE is set"}[answers]
    do = f"{'; '.join(replaced)}: connect, or set GPT2OPT_MODEL and GPT2OPT_TEXT" if replaced and not answers else ""
    found = f"holds {', '.join(cached)}" if cached else "holds no GPT-2 and no WikiText-2"
    ask = "what the local cache holds is used; connect for the rest, or set HF_HUB_OFFLINE=1 and nothing waits for it"
    return [Finding("hub", hub, *((NOTE, ask) if answers is False else ())), Finding("local cache", found, NOTE if do else OK, do)]


def in_cache() -> list[str]:
    """Return which of the models and texts that this project names are in the local cache, whole."""
    from gpt2opt.sources import models, texts
    from gpt2opt.sources.hub import cached_snapshot

    paths = {name: cached_snapshot(name, models.PATTERNS) for name in PARAMETERS if name != BUNDLED}
    found = [name for name, path in paths.items() if path and models.is_complete(path)]
    wikitext = cached_snapshot(texts.WIKITEXT, texts.WIKITEXT_PATTERNS, repo_type="dataset")
    return [*found, "WikiText-2"] if wikitext and texts.is_complete(wikitext / texts.WIKITEXT_FOLDER) else found


@dataclass(frozen=True)
class Diagnosis:
    """What all checks found."""

    findings: tuple[Finding, ...]

    @property
    def can_run(self) -> bool:
        """Return whether `make run` can run on the bundled model."""
        return not any(finding.state == FAILS for finding in self.findings)

    def short(self) -> str:
        """Return one line if all is well, else what is to be done: first what keeps the notebook from running."""
        rows = sorted((finding for finding in self.findings if finding.state != OK), key=lambda finding: finding.state != FAILS)
        return "\n".join([*(f"{row.what}, {row.found}: {row.do}" for row in rows), *([FITS] if self.can_run else [])])

    def table(self) -> Table:
        return table(("what", "state", "found"), [(finding.what, finding.state, finding.found) for finding in self.findings])

    def as_json(self) -> dict[str, Any]:
        return {
            "can_run": self.can_run,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "free_ram_bytes": free_ram(),
            "free_disk_bytes": free_disk(),
            "ram_needs": [dataclasses.asdict(need) for need in ram_needs()],
            "disk_needs": {size: disk_bytes(size) for size in PARAMETERS},
        }


def examine(short: bool = False) -> Diagnosis:
    """Run the checks; in short, those that need no network."""
    checks = [check_python, check_packages, check_cpu, check_container, check_gpu, check_ram_and_disk]
    return Diagnosis(tuple(finding for check in (checks if short else [*checks, check_sources]) for finding in check()))


def check_machine() -> str:
    """Return whether this machine can run the notebook: one line if all is well, else what is to be done first."""
    return examine(short=True).short()
