"""The report of a run, or of several beside each other: one HTML file that holds its style and charts and asks nothing of a network."""

import base64
import io
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from gpt2opt.measure.stats import PERCENT
from gpt2opt.report.chart import describe
from gpt2opt.report.charts import draw_charts
from gpt2opt.report.compare import CAPTION, compare_runs, comparison_tables, differences_table
from gpt2opt.report.conclusions import machine_changes
from gpt2opt.report.tables import audit_of, explain_products, record_tables, stand_in_notice
from gpt2opt.run.record import QUANTIZE, Record
from gpt2opt.storage import write_result


def write_report(records: Sequence[Record], path: Path) -> None:
    """Write a report as one HTML file, whole or not at all. Of several runs, all are compared with the first.

    Raises:
        ValueError: no run, more than there are letters to name them, or the place can't be written.
    """
    if not records:
        raise ValueError("no run to report; name at least one record")
    several = len(records) > 1
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    content = pages.get_template("page.html").render(
        title=f"gpt2opt: {', '.join(dict.fromkeys(record.sources['model']['name'] for record in records))}",
        caption=CAPTION,
        compared=comparison_tables(compare_runs(records)) if several else {},
        differences=differences_table(records) if several else None,
        runs=[
            _run(record, f"Run {letter}" if several else "The run") for letter, record in zip(string.ascii_uppercase, records, strict=False)
        ],
    )
    write_result(path, content)


def _run(record: Record, heading: str) -> dict[str, Any]:
    """Return what the template shows of a run."""
    stopped = "" if QUANTIZE in record.stages else "; the run stopped there, and what comes later is not shown"
    return {
        "heading": heading,
        "stages": f"Taken {record.created}. Stages: {', '.join(record.stages) or 'none'}{stopped}.",
        "notice": stand_in_notice(record),
        "tables": record_tables(record),
        "notes": _notes(record),
        "charts": {name: {"words": describe(figure), "svg": _svg(figure)} for name, figure in draw_charts(record)},
    }


def _notes(record: Record) -> dict[str, str]:
    """Return what has to be said to some of the tables, by title."""
    settings = record.settings
    protocols, audit = dict.fromkeys(m.quality.protocol for m in record.measurements() if m.quality), audit_of(record)
    products = explain_products(audit["prefill"], audit["decode"]) if audit else ""
    return {
        "Summary": f"Prompt of {settings.prompt_tokens} tokens, {settings.new_tokens} new ones; TTFT and TPOT are medians. Intervals are "
        f"{PERCENT}: over documents, and of models timed in turns over the pairs of runs. Scored: {'; '.join(protocols) or 'nothing yet'}. "
        "Controls separate causes.",
        "Distance from the reference model": "Each model against its reference model, on the scored text.",
        "Memory at rest": "Of a process that has loaded the model and generated. RSS counts every resident page; PSS counts a page that n "
        "processes share as 1/n; USS counts pages that no other process maps. File-backed pages are mapped weights and libraries: the "
        "system may drop them and read them again. PSS and USS depend on what else runs on the machine.",
        "Timed in turns": f"Times and ratios of the last rounds that both models took part in. {machine_changes(record)}",
        "INT8 audit": f"What the weights are stored as in the file, and what the two compiled graphs multiply. {products}",
        "Trade-off": "A model is dominated if another on the same device, text and prompt is no worse in TPOT, perplexity and size, and "
        "better in one; the others are the Pareto front. Perplexities count as different if their paired interval shows it.",
        "Provenance": f"Schema {record.schema}, commit {record.environment['commit'] or 'unknown'}, seed {settings.seed}. Weights by the "
        "first 16 of the 64 digits of their SHA-256. All on this page is drawn from the record, run.json, which holds every sample: times "
        "of single tokens in latency, summed loss of documents in quality, their divergence from the reference model in agreement.",
    }


def _svg(figure) -> str:
    """Return a figure as an image of its own in base64, so that ids and styles of several SVGs do not meet in one page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return base64.b64encode(buffer.getvalue()).decode()
