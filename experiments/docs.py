"""Fill the marked blocks of README and docs from the committed results, and draw their charts. No figure in them is typed by hand.

A block stands between `<!-- WHAT-KIND -->` and `<!-- /WHAT-KIND -->`: what was measured on one kind of CPU, an experiment of
`contract.EXPERIMENTS` or one of `OF_THE_RUN`, of the record of the notebook in `results/KIND/run.json`; or it is `OPTIMUM`.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.contract import EXPERIMENTS, hash_of, json_path, read_result_of, write_charts
from experiments.race.results import MAIN, TPOT, TTFT_512, Figure, RaceResult
from gpt2opt.environment import cpu_kind, machine_label
from gpt2opt.report.charts import draw_charts
from gpt2opt.report.conclusions import conclude_finetune, conclude_profile, conclude_prune, conclude_quantize, machine_changes
from gpt2opt.report.table import Table, milliseconds, table
from gpt2opt.report.tables import chain_table, memory_table, perplexity_ratio, quality_table, speed_table, summary_table
from gpt2opt.run.record import QUANTIZE, Record, read_record
from gpt2opt.storage import write_whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
DOCUMENTS = ("README.md", "docs/*.md")
OF_DOCTOR = "gpt2opt/apps/doctor/measured.json"
OPTIMUM = "optimum-intel"
"""The block that shows optimum-intel's own INT8 beside ours on every kind of CPU at once."""
BLOCK = re.compile(r"<!-- (?P<name>[\w-]+) -->\n.*?<!-- /(?P=name) -->", re.DOTALL)
PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<path>[^)]*\.png)\)")


def fill_documents() -> list[str]:
    """Draw the charts, fill all documents and write what `gpt2opt doctor` knows; return the names of the files that changed."""
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        draw_missing(folder)
    contents = {path: fill(path.read_text(encoding="utf-8"), path.parent) for path in documents()} | {ROOT / OF_DOCTOR: measured(RESULTS)}
    changed = [path for path, content in contents.items() if not path.exists() or path.read_text(encoding="utf-8") != content]
    for path in changed:
        write_whole(path, contents[path])
    return [path.relative_to(ROOT).as_posix() for path in changed]


def documents() -> list[Path]:
    return [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]


def take_run() -> Path:
    """Copy the record of the last run of the notebook, traces/run.json, to the results of its GPU, or of its kind of CPU."""
    source = ROOT / "traces" / "run.json"
    facts = read_record(source).environment
    folder = re.sub(r"\W+", "_", facts["gpu"].lower()) if facts["gpu"] else cpu_kind(facts["cpu_flags"])
    target = RESULTS / folder / "run.json"
    write_whole(target, source.read_bytes())
    return target


def draw_missing(folder: Path) -> None:
    """Draw the charts of a folder of results that are not there yet, or were drawn from another result; remove those that are no more."""
    for source in results_in(folder):
        drawn, digest = drawn_from(source), hash_of(source).encode()
        if drawn and all(digest in path.read_bytes() for path in drawn):
            continue
        if source.name == "run.json":
            charts: Mapping[str, Any] = {f"run-{name}": figure for name, figure in draw_charts(read_record(source))}
        else:
            charts = EXPERIMENTS[source.stem].load().charts(read_result_of(source.stem, folder))
        write_charts(charts, folder, source)
        for path in drawn:
            if path.stem not in charts:
                path.unlink()


def results_in(folder: Path) -> list[Path]:
    """Return the results in a folder: other JSON may be there, such as the marker of a folder of ours."""
    return [path for name in ("run", *EXPERIMENTS) if (path := json_path(name, folder)).exists()]


def drawn_from(source: Path) -> list[Path]:
    """Return the charts that lie beside a result."""
    if source.name == "run.json":
        return sorted(source.parent.glob("run-*.png"))
    return [path for name in EXPERIMENTS[source.stem].charts if (path := source.with_name(f"{name}.png")).exists()]


def measured(results: Path) -> str:
    """Return the text of `gpt2opt/apps/doctor/measured.json`, given the folder of the results of all kinds of CPU."""
    kinds = sorted(path.name for path in results.iterdir() if json_path("race", path).exists())
    return json.dumps({kind: int8_gain(read_result_of("race", results / kind)) for kind in kinds}, indent=1) + "\n"


def int8_gain(race: RaceResult) -> str:
    """Say how our INT8 compares with the fastest of the engines that run the same pruned model in FP32, which a user would take instead."""
    shown = ", ".join(f"{name} {_gain(race, figure)}" for name, figure in (("TTFT", TTFT_512), ("TPOT", TPOT)))
    return f"{shown} (size of {race.size}, {MAIN.prompt_tokens} + {MAIN.new_tokens} tokens)"


def _gain(race: RaceResult, figure: Figure) -> str:
    in_fp32 = [engine for engine in race.raced if engine.block_bytes == 4 and not engine.full_heads and figure.per_round(engine)]
    if not in_fp32:
        return f"{milliseconds(figure.median(race.ours))} ms, gain not measured, since no FP32 engine was in the race"
    fastest = min(in_fp32, key=figure.median)
    return f"{figure.ratio(fastest, race.ours):.1f} times as fast as {fastest.name}"


def fill(text: str, place: Path) -> str:
    """Return a document of the folder `place` with every block made again; an unknown block or result is a ValueError."""

    def made(found: re.Match[str]) -> str:
        block = PICTURE.sub(
            lambda picture: f"![{words_of(place / picture['path']) or picture['alt']}]({picture['path']})", _block(found["name"], place)
        )
        return f"<!-- {found['name']} -->\n\n{block}\n\n<!-- /{found['name']} -->"

    return BLOCK.sub(made, text)


def words_of(chart: Path) -> str:
    """Return what is written in a chart, as `write_charts` keeps it for those who can't see it; nothing if it was drawn before that."""
    with Image.open(chart) as picture:
        return picture.info.get("Description", "").translate({ord("["): "(", ord("]"): ")"})  # they would end the alternative text


def _block(name: str, place: Path) -> str:
    if name == OPTIMUM:
        from experiments.race.report import optimum_table

        kinds = [path for path in sorted(RESULTS.iterdir()) if json_path("race", path).exists()]
        return optimum_table({path.name: read_result_of("race", path) for path in kinds}).markdown()
    what, _, kind = name.rpartition("-")
    folder = RESULTS / kind
    if what in OF_THE_RUN:
        return OF_THE_RUN[what](read_record(folder / "run.json"), _link(folder, place))
    if what not in EXPERIMENTS:
        known = ", ".join(f"{one}-KIND" for one in (*OF_THE_RUN, *EXPERIMENTS))
        raise ValueError(f"block {name!r} is not known; expected one of {known}")
    experiment, result, link = EXPERIMENTS[what].load(), read_result_of(what, folder), _link(folder, place)
    source = json_path(what, folder)
    parts = [experiment.caption(result)]
    parts += [f"![{path.stem}]({link}/{path.name})" for path in drawn_from(source)]
    shown = {title: each for title, each in experiment.tables(result).items() if title in (experiment.in_documents or (title,))}
    parts += [f"**{title}**\n\n{each.markdown()}" for title, each in shown.items()]
    return "\n\n".join([*parts, f"All samples: [`{what}.json`]({link}/{source.name})."])


def _link(folder: Path, place: Path) -> str:
    return Path(os.path.relpath(folder, place)).as_posix()


def _first_page(record: Record, link: str) -> str:
    """Show five models of a run in one table, and one chart."""
    return f"{chain_table(record).markdown()}\n\n![Latency of the five models]({link}/run-latency.png)\n\n{_taken_on(record)}"


def _models(record: Record) -> Table:
    """Return the summary of a run without the columns that are the same in all rows, or follow from another."""
    shown = summary_table(record)
    columns = [number for number, name in enumerate(shown.header) if name not in ("bits/byte", "device")]
    return table([shown.header[column] for column in columns], [[row[column] for column in columns] for row in shown.rows])


def _taken_on(record: Record) -> str:
    facts, sources, settings = record.environment, record.sources, record.settings
    quality = record.measured("Baseline").scored
    return (
        f"Measured on {machine_label(facts)}, {facts['gpu'] or 'no GPU'}. Model: {sources['model']['name']}; text: "
        f"{sources['text']['name']}, {quality.num_tokens:,} tokens scored. Prompt {settings.prompt_tokens} tokens, {settings.new_tokens} "
        "new; TTFT and TPOT are medians."
    )


def _summary(record: Record, link: str) -> str:
    parts = [_taken_on(record)]
    if record.stages[-1] == QUANTIZE:
        int8, fp32 = record.measured("INT8").scored, record.measured("FP32").scored
        parts.append(f"Perplexity of INT8 ÷ that of its FP32 control: {perplexity_ratio(int8, fp32)}.")
    parts.append(f"Every number comes from [`run.json`]({link}/run.json), which also holds the raw samples.")
    return f"{_models(record).markdown()}\n\n{' '.join(parts)}"


def _conclusions(record: Record, link: str) -> str:
    parts = (conclude_profile, conclude_prune, conclude_finetune, conclude_quantize)
    said = [conclude(record) for conclude, _ in zip(parts, record.stages, strict=False)]  # a run may end before the last stage
    return "\n\n".join(f"**Part {number}.** {' '.join(words.splitlines())}" for number, words in enumerate(said, 1))


def _charts(record: Record, link: str) -> str:
    names = ("perplexity", "memory", "loss", "importance", "sensitivity", "tradeoff", "operators")
    return "\n\n".join(f"![{name}]({link}/run-{name}.png)" for name in names)


OF_THE_RUN = {
    "first-page": _first_page,
    "run": _summary,
    "conclusions": _conclusions,
    "turns": lambda record, link: f"{speed_table(record).markdown()}\n\n{machine_changes(record)}",
    "references": lambda record, link: quality_table(record).markdown(),
    "memory": lambda record, link: memory_table(record).markdown(),
    "charts": _charts,
}
