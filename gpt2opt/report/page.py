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
        ValueError: there are more runs than letters to name them, or the place can't be written.
    """
    several = len(records) > 1
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    content = pages.get_template("page.html").render(
        title=f"gpt2opt: {', '.join(dict.fromkeys(record.sources['model']['name'] for record in records))}",
        caption=CAPTION,
        percent=PERCENT,
        compared=comparison_tables(compare_runs(records)) if several else {},
        differences=differences_table(records) if several else None,
        runs=[
            _run(record, f"Run {letter}" if several else "The run") for letter, record in zip(string.ascii_uppercase, records, strict=False)
        ],
    )
    write_result(path, content)


def _run(record: Record, heading: str) -> dict[str, Any]:
    """Return what the template shows of a run."""
    audit = audit_of(record)
    return {
        "heading": heading,
        "record": record,
        "complete": QUANTIZE in record.stages,
        "notice": stand_in_notice(record),
        "tables": record_tables(record),
        "protocols": dict.fromkeys(m.quality.protocol for m in record.measurements() if m.quality),
        "machine": machine_changes(record),
        "products": explain_products(audit["prefill"], audit["decode"]) if audit else "",
        "charts": [{"words": describe(figure), "svg": _svg(figure)} for _, figure in draw_charts(record)],
    }


def _svg(figure) -> str:
    """Return a figure as an image of its own in base64, so that ids and styles of several SVGs do not meet in one page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return base64.b64encode(buffer.getvalue()).decode()
