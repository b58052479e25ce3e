"""The report of a run, or of several beside each other: one HTML file that holds its style and charts and asks nothing of a network."""

import base64
import io
import string
from collections.abc import Sequence
from html import escape
from pathlib import Path

from gpt2opt.measure.stats import PERCENT
from gpt2opt.report.chart import describe
from gpt2opt.report.charts import draw_charts
from gpt2opt.report.compare import CAPTION, compare_runs, comparison_tables, differences_table
from gpt2opt.report.conclusions import machine_changes
from gpt2opt.report.tables import Table, explain_products, record_tables, stand_in_notice
from gpt2opt.run.record import QUANTIZE, Record
from gpt2opt.storage import write_result

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1.05rem; margin-top: 1.8rem; }
.notice { background: #fff6dd; border-left: 4px solid #d9a400; padding: .5rem 1rem; white-space: pre-line; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd; }
.wide td, .wide th { white-space: nowrap; }
figure { margin: 1.5rem 0; overflow-x: auto; } img { min-width: 44rem; max-width: 100%; height: auto; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; } table { font-size: 7pt; }
  .scroll, figure { overflow: visible; } img { min-width: 0; }
  .wide td, .wide th { white-space: normal; } figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
WIDE = 5  # columns from which on a phone scrolls a table instead of breaking every cell


def write_report(records: Sequence[Record], path: Path) -> None:
    """Write a report as one HTML file, whole or not at all. Of several runs, all are held against the first.

    Raises:
        ValueError: no run, more than there are letters to name them, or the place can't be written.
    """
    if not records:
        raise ValueError("no run to report; name at least one record")
    write_result(path, _page(records))


def _page(records: Sequence[Record]) -> str:
    title = f"gpt2opt: {', '.join(dict.fromkeys(record.sources['model']['name'] for record in records))}"
    several = len(records) > 1
    body = [_tag("h1", title), *(_comparison(records) if several else [])]
    for letter, record in zip(string.ascii_uppercase, records, strict=False):
        body += _run(record, f"Run {letter}" if several else "The run")
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="generator" content="gpt2opt">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    )
    return f"{head}{_tag('title', title)}\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"


def _comparison(records: Sequence[Record]) -> list[str]:
    blocks = [_tag("h2", "The runs beside each other"), _tag("p", CAPTION)]
    for stage, shown in comparison_tables(compare_runs(records)).items():
        blocks += [_tag("h3", stage), _table(shown)]
    return [*blocks, _tag("h3", "What is not the same"), _table(differences_table(records))]


def _run(record: Record, heading: str) -> list[str]:
    charts = {name: _image(figure) for name, figure in draw_charts(record)}
    tradeoff, notes = charts.pop("tradeoff", ""), _notes(record)
    blocks = [_tag("h2", heading), _tag("p", _stages(record)), _tag("p", stand_in_notice(record), ' class="notice"')]
    for title, shown in record_tables(record).items():
        if title == "Trade-off":
            blocks += [_tag("h3", "Charts"), *charts.values()]
        blocks += [_tag("h3", title), _tag("p", notes[title]) if title in notes else "", _table(shown)]
        if title == "Trade-off":
            blocks.append(tradeoff)
    return blocks


def _stages(record: Record) -> str:
    names = ", ".join(record.stages) or "none"
    stopped = "" if QUANTIZE in record.stages else "; the run stopped there, and what comes later is not shown"
    return f"Taken {record.created}. Stages: {names}{stopped}."


def _notes(record: Record) -> dict[str, str]:
    """Return what has to be said to some of the tables, by title."""
    settings = record.settings
    protocols = dict.fromkeys(m.quality.protocol for m in record.measurements() if m.quality)
    return {
        "Summary": f"Prompt of {settings.prompt_tokens} tokens, {settings.new_tokens} new ones; TTFT and TPOT are medians. Intervals are "
        f"{PERCENT}: over documents, and of models timed in turns over the pairs of runs. Scored: {'; '.join(protocols) or 'nothing yet'}. "
        "Controls tell causes apart.",
        "Distance from the reference model": "Each model against its reference model, on the scored text.",
        "Memory at rest": "Of a process that has loaded the model and generated. RSS counts every resident page; PSS counts a page that n "
        "processes share as 1/n; USS counts pages that no other process maps. File-backed pages are mapped weights and libraries: the "
        "system may drop them and read them again. PSS and USS depend on what else runs on the machine.",
        "Timed in turns": f"Times and ratios of the last rounds that both models took part in. {machine_changes(record)}",
        "INT8 audit": f"What the weights are stored as in the file, and what the two compiled graphs multiply. {_products(record)}",
        "Trade-off": "A model is dominated if another on the same device, text and prompt is no worse in TPOT, perplexity and size, and "
        "better in one; the others are the Pareto front. Perplexities count as different if their paired interval shows it.",
        "Provenance": f"Schema {record.schema}, commit {record.environment['commit'] or 'unknown'}, seed {settings.seed}. Weights by the "
        "first 16 of the 64 digits of their SHA-256.",
        "Raw samples": "All on this page is drawn from the record, run.json, which holds every sample: times of single tokens in "
        "latency, summed loss of single windows in quality, divergence from FP32 in agreement.",
    }


def _products(record: Record) -> str:
    audit = next((m.facts["audit"] for m in record.measurements() if "audit" in m.facts), None)
    return explain_products(audit["prefill"], audit["decode"]) if audit and "prefill" in audit else ""


def _table(shown: Table) -> str:
    head, *rows = (
        f"<tr>{''.join(_tag(cell, text) for text in line)}</tr>"
        for cell, line in (("th", shown.header), *(("td", row) for row in shown.rows))
    )
    wide = ' class="wide"' if len(shown.header) >= WIDE else ""
    return f'<div class="scroll"><table{wide}><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _image(figure) -> str:
    """Return a figure as an image of its own, so that ids and styles of several SVGs do not meet in one page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{escape(describe(figure))}" src="data:image/svg+xml;base64,{data}"></figure>'


def _tag(name: str, text: str, attributes: str = "") -> str:
    return f"<{name}{attributes}>{escape(text)}</{name}>"
