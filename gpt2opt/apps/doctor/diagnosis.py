"""Run the checks and show what they found, whole or in short."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from gpt2opt.apps.doctor.checks import CHECKS
from gpt2opt.apps.doctor.finding import FAILS, OK, Finding
from gpt2opt.apps.doctor.needs import SIZES, WORK, disk_bytes, free_disk, free_ram, ram_needs
from gpt2opt.report.table import Table, gigabytes, table

FITS = "This machine can run the notebook: the Python and the packages fit, and RAM and disk suffice for the bundled model."


@dataclass(frozen=True)
class Diagnosis:
    """What all checks found."""

    findings: tuple[Finding, ...]

    @property
    def can_run(self) -> bool:
        """Return whether `make run` can run on the bundled model."""
        return not any(finding.state == FAILS for finding in self.findings)

    def to_do(self) -> list[str]:
        """Return a line for each row in which something is to be done: first what keeps the notebook from running."""
        rows = sorted((finding for finding in self.findings if finding.state != OK), key=lambda finding: finding.state != FAILS)
        return [f"{row.what}, {row.found}: {row.do}" for row in rows]

    def short(self) -> str:
        """Return one line if all is well, else what is to be done."""
        return "\n".join([*self.to_do(), *([FITS] if self.can_run else [])])

    def as_json(self) -> dict[str, Any]:
        return {
            "can_run": self.can_run,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "free_ram_bytes": free_ram(),
            "free_disk_bytes": free_disk(),
            "ram_needs": [dataclasses.asdict(need) for need in ram_needs()],
            "disk_needs": {name: disk_bytes(size) for name, size in SIZES.items()},
        }


def examine(short: bool = False) -> Diagnosis:
    """Run the checks; in short, those that need no network."""
    return Diagnosis(tuple(finding for check in CHECKS if check.short or not short for finding in check.function()))


def check_machine() -> str:
    """Return whether this machine can run the notebook: one line if all is well, else what is to be done first."""
    return examine(short=True).short()


def findings_table(diagnosis: Diagnosis) -> Table:
    return table(("what", "state", "found"), [(finding.what, finding.state, finding.found) for finding in diagnosis.findings])


def needs_table() -> Table:
    """Show what each stage needs for each size, and whether that is free here: RAM by formula, then measured where it was; disk."""
    rows = []
    needs = {(need.stage, need.size): need for need in ram_needs()}
    for stage in WORK:
        rows.append((f"RAM, {stage}", *(_shown(needs[stage, size].bytes, free_ram(), needs[stage, size].measured_bytes) for size in SIZES)))
    rows.append(("disk, a whole run", *(_shown(disk_bytes(size), free_disk(), None) for size in SIZES.values())))
    return table(("needed, by formula (measured)", *SIZES), rows)


def _shown(needed: int, free: int | None, taken: int | None) -> str:
    figures = f"{gigabytes(needed)}{f' ({gigabytes(taken)})' if taken else ''}"
    return f"{figures}, too much here" if free is not None and needed > free else figures
