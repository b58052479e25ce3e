"""Tables for people: aligned text on a terminal, Markdown in the notebook and the README."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpt2opt.environment import instructions_label
from gpt2opt.measure.results import Memory, Quality
from gpt2opt.measure.stats import PERCENT, Estimate
from gpt2opt.report.table import MISSING, Table, gigabytes, megabytes, milliseconds, table
from gpt2opt.run.record import Measurement, Record, dominated_by

NO_DIFFERENCE = "no measurable difference"
CHAIN = ("Baseline", "Pruned", "Fine-tuned", "FP32", "INT8")


def environment_table(record: Record) -> Table:
    """Say what the run was taken with: model, text, machine, versions."""
    facts = record.environment
    rows = [
        *((name, _source(record.sources[name])) for name in ("model", "text")),
        ("CPU", f"{facts['cpu']}, {facts['threads']} threads, {instructions_label(facts['cpu_flags'])}"),
        ("how threads wait", facts.get("wait_policy") or "as their library does by default"),
        ("GPU", facts["gpu"] or "none: stages 1 to 3 are measured on the CPU"),
        ("memory", gigabytes(facts["memory_bytes"])),
        ("Python", facts["python"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
    ]
    return table(("what", "value"), rows)


def _source(source: dict) -> str:
    revision = f", revision {source['revision']}" if source.get("revision") else ""
    return f"{source['name']} (from the {source['origin']}{revision})"


def stand_in_notice(record: Record) -> str:
    """Say what is used instead of something else in this run, and how to get the real one; or that nothing is."""
    model, text = record.sources["model"], record.sources["text"]
    again, lines = "which could not be had. For the real one, connect and run again, or set", []
    if model["stand_in"]:
        lines.append(f"Model: the bundled GPT-2 is used instead of `gpt2`, {again} GPT2OPT_MODEL to a directory that holds it.")
    if text["stand_in"]:
        lines.append(f"Text: the {text['name']} is used instead of WikiText-2, {again} GPT2OPT_TEXT to a UTF-8 file.")
    if record.environment["gpu"] is None:
        lines.append("GPU: none; FP16 runs on the CPU, and memory is RAM, not VRAM.")
    return "\n".join(lines) or "Nothing was replaced: the model and the text are the ones asked for, and FP16 runs on a GPU."


def summary_table(record: Record) -> Table:
    """Show every measurement of a run, controls included, in the order they were taken."""
    return _summary(record, record.measurements())


def _summary(record: Record, measurements: Iterable[Measurement]) -> Table:
    rows, unknown = [], (MISSING, MISSING)
    for m in measurements:
        latency, quality, memory = m.latency, m.quality, m.memory
        times = (
            (milliseconds(latency.ttft_s), f"{milliseconds(latency.tpot_s)} ({milliseconds(latency.tpot_p95_s)})") if latency else unknown
        )
        scores = (show_perplexity(quality), f"{quality.bits_per_byte:.3f}") if quality else unknown
        sizes = (megabytes(memory.weight_bytes), _peak(memory)) if memory else unknown
        rows.append((_named(record, m), m.dtype, m.runtime, m.device, *times, *scores, *sizes))
    figures = ("TTFT ms", "TPOT ms (p95)", f"perplexity [{PERCENT}]", "bits/byte", "file MB", "peak memory MB")
    return table(("stage", "weights", "runtime", "device", *figures), rows)


def _peak(memory: Memory) -> str:
    if memory.peak_vram_bytes is not None:
        return f"{megabytes(memory.peak_vram_bytes)} VRAM"
    return f"{megabytes(memory.peak_rss_bytes)} RSS" if memory.peak_rss_bytes is not None else MISSING


def chain_table(record: Record) -> Table:
    """Show the models that the stages hand on, and FP32 beside INT8, without what the tables of the stages have besides."""
    summary = summary_table(record)
    columns = [place for place, name in enumerate(summary.header) if name not in ("device", "bits/byte")]
    rows = [row for row in summary.rows if row[0].removesuffix(" (control)") in CHAIN]
    return table([summary.header[place] for place in columns], [[row[place] for place in columns] for row in rows])


def throughput_table(record: Record) -> Table:
    """Show the latency of every timed model beside its throughput, in tokens/s: while it reads a prompt, and while it generates."""
    rows = []
    for m in (m for m in record.measurements() if m.latency):
        rates = (m.timed.prompt_tokens / m.timed.ttft_s, 1 / m.timed.tpot_s)
        times = (milliseconds(m.timed.ttft_s), milliseconds(m.timed.tpot_s))
        rows.append((_named(record, m), m.runtime, m.device, *times, *(f"{m.timed.batch_size * rate:,.0f}" for rate in rates)))
    return table(("model", "runtime", "device", "TTFT ms", "TPOT ms", "prompt tokens/s", "generated tokens/s"), rows)


def stage_table(record: Record, name: str) -> Table:
    """Show one stage beside the stage before it and beside its controls."""
    record.stage(name)  # or it raises
    before = [record.stage(stage).name for stage in record.stages if stage < name][-1:]
    shown = [m for m in record.measurements(name) if m.name in before or record.role(m.name).stage == name]
    return _summary(record, shown)


def memory_table(record: Record) -> Table:
    """Show what each measured model takes on disk, in the RAM of a fresh process that generates, step by step, and in VRAM."""
    rows = []
    for measurement in record.measurements():
        if memory := measurement.memory:
            loaded, steady = (resident.rss_bytes if resident else None for resident in (memory.loaded, memory.steady))
            in_ram = (memory.weight_bytes, memory.start_rss_bytes, loaded, steady, memory.peak_rss_bytes)
            in_vram = (memory.peak_vram_bytes, memory.peak_vram_reserved_bytes, memory.driver_vram_bytes)
            vram = MISSING if memory.peak_vram_bytes is None else " / ".join(map(_size, in_vram))
            rows.append((_named(record, measurement), *map(_size, in_ram), vram))
    steps = ("RSS at start MB", "loaded MB", "steady MB", "peak RSS MB")
    return table(("stage", "weights on disk MB", *steps, "VRAM MB: allocated / reserved / driver"), rows)


def shared_memory_table(record: Record) -> Table:
    """Show how the RAM of each process at rest divides: all (RSS), shared pages by their share (PSS), unshared (USS), and of files."""
    rows = [
        (_named(record, measurement), *map(megabytes, (steady.rss_bytes, steady.pss_bytes, steady.uss_bytes, steady.file_bytes)))
        for measurement in record.measurements()
        if measurement.memory and (steady := measurement.memory.steady)
    ]
    return table(("stage", "RSS MB", "PSS MB", "USS MB", "file-backed MB"), rows)


def _named(record: Record, measurement: Measurement) -> str:
    return f"{measurement.name}{' (control)' if record.role(measurement.name).control else ''}"


def _size(size: int | None) -> str:
    return MISSING if size is None else megabytes(size)


def audit_table(record: Record) -> Table:
    """Show, for each kind of matmul, how many there are, what their weights are stored as, and what is multiplied."""
    audit = record.measured("INT8").facts["audit"]
    kinds: dict[str, list[str]] = {}
    for name in audit["in_file"]:
        kinds.setdefault(name.split(".", 2)[-1], []).append(name)
    rows = []
    for kind, names in kinds.items():
        stored = ", ".join(sorted({audit["in_file"][name] for name in names}))
        rows.append((kind, str(len(names)), stored, _products(audit["prefill"], names), _products(audit["decode"], names)))
    return table(("matmul", "how many", "weights stored as", "prompts: input × weight", "further tokens: input × weight"), rows)


def explain_products(prefill: Mapping[str, Sequence[str]], decode: Mapping[str, Sequence[str]]) -> str:
    """Say why an audit shows float inputs for further tokens where prompts have INT8 ones; empty if it does not.

    prefill, decode: name of a matmul -> the types of its input and its weight, in the graph that reads prompts and in the decode step.
    """
    if not any(prefill[name][0] != "f32" == decode[name][0] for name in decode if name in prefill):
        return ""
    return (
        "Prompts are read with INT8 inputs and INT8 weights. The decode step has the same INT8 weights and float32 inputs, which it does "
        "not round: with one row of inputs, most of the time goes into reading the weights."
    )


def _products(executed: dict[str, Sequence[str]], names: list[str]) -> str:
    counts = Counter(" × ".join(executed[name]) for name in names)
    return ", ".join(f"{count} {product}" if len(counts) > 1 else product for product, count in counts.most_common())


def quality_table(record: Record) -> Table:
    """Show how far each model is from its reference model on the scored text, at every stage that was run."""
    measured = {measurement.name: measurement for measurement in record.measurements()}
    rows = [
        (
            name,
            agreement.reference,
            perplexity_ratio(measurement.scored, measured[agreement.reference].scored),
            with_interval(agreement.mean_kl, agreement.mean_kl_interval(), ".5f"),
            with_interval(agreement.kl_p99, agreement.kl_p99_interval, ".4f"),
            with_interval(agreement.top1, agreement.top1_interval(), ".2%"),
        )
        for name, measurement in measured.items()
        if (agreement := measurement.agreement)
    ]
    figures = ("perplexity / reference's", "mean KL, nats", "KL p99", "same top token")
    header = ("model", "its reference model", *(f"{figure} [{PERCENT}]" for figure in figures))
    return table(header, rows)


def speed_table(record: Record) -> Table:
    """Show every pair of models that was timed in turns: their times in these rounds, and the ratio, or that none was measurable."""
    rows = []
    for pair in record.comparisons():
        one, base = pair.latency, pair.base_latency
        ttft = f"{milliseconds(one.ttft_s)} / {milliseconds(base.ttft_s)}"
        tpot = f"{milliseconds(one.tpot_s)} / {milliseconds(base.tpot_s)}"
        others = MISSING if one.others_cpu_share is None else f"{one.others_cpu_share:.0%}"
        runs = str(len(one.ttft_samples_s))
        rows.append((f"{pair.name} / {pair.base}", ttft, show_ratio(pair.ttft), tpot, show_ratio(pair.tpot), runs, others))
    times = ("TTFT ms", f"TTFT ratio [{PERCENT}]", "TPOT ms", f"TPOT ratio [{PERCENT}]")
    return table(("models", *times, "runs of each, in turns", "cores taken by others"), rows)


def show_ratio(ratio: Estimate) -> str:
    return f"{ratio:.3f}" if ratio.measurable else f"{ratio:.3f}: {NO_DIFFERENCE}"


def samples_table(record: Record, most: int | None = None) -> Table:
    """Show sample prompts and what every model wrote behind them; `‖` stands before the first token that its reference would not write.

    most: how many prompts, evenly spaced among all; by default all.
    """
    written = {name: model.continuations for name, model in record.models.items() if model.continuations}
    count = len(next(iter(written.values()), ()))
    rows = []
    for number in range(0, count, 1 if most is None else max(1, count // most))[:most]:
        rows.append((f"prompt {number + 1}", " ".join(record.prompts[number].split())))
        for name, texts in written.items():
            agreement = record.models[name].agreement
            reference = agreement.reference if agreement and agreement.reference in written else None
            shown = _marked(texts[number], written[reference or name][number])
            rows.append((f"{name} (‖ {reference})" if reference else name, shown))
    return table(("model (‖ its reference)", "text"), rows)


def _marked(tokens: Sequence[str], reference: Sequence[str]) -> str:
    first = next((place for place, (one, other) in enumerate(zip(tokens, reference, strict=True)) if one != other), None)
    marked = tokens if first is None else (*tokens[:first], "‖", *tokens[first:])
    return " ".join("".join(marked).split())


def tradeoff_table(record: Record) -> Table:
    """Say of every measurement with all three figures whether it is on the Pareto front, or which others dominate it."""
    whole = [m for m in record.measurements() if m.latency and m.quality and m.memory]
    rows = []
    for measurement in whole:
        better = [other.name for other in dominated_by(measurement, whole)]
        place = f"dominated by {', '.join(better)}" if better else "on the front"
        tpot, perplexity = milliseconds(measurement.timed.tpot_s), f"{measurement.scored.perplexity:.2f}"
        rows.append((measurement.name, measurement.device, tpot, perplexity, megabytes(measurement.sized.weight_bytes), place))
    return table(("model", "device", "TPOT ms", "perplexity", "file MB", "Pareto front"), rows)


def settings_table(record: Record) -> Table:
    return table(("setting", "value"), [(name, str(value)) for name, value in dataclasses.asdict(record.settings).items()])


def provenance_table(record: Record) -> Table:
    """Show which weights each stage read and wrote, by the first 16 of the 64 digits of their SHA-256."""
    rows: list[tuple[str, ...]] = []
    before: Measurement | None = None
    for stage in record.stages:
        found = record.stage(stage)
        if found.weights_in is None:
            read = "not known"
        elif before is None:
            read = "the source"
        else:
            read = before.name if found.weights_in == before.weights else f"not what {before.name} wrote"
        seconds = MISSING if found.seconds is None else f"{found.seconds:.0f}"
        rows.append((stage, found.name, read, (found.weights_in or MISSING)[:16], (found.weights or MISSING)[:16], seconds))
        before = found
    return table(("stage", "model", "made from", "weights in", "weights out", "seconds to measure"), rows)


def record_tables(record: Record) -> dict[str, Table]:
    """Return every table that the stages of a record allow, by title."""
    tables = {
        "Environment": environment_table(record),
        "Settings": settings_table(record),
        "Summary": summary_table(record),
        "Timed in turns": speed_table(record),
        "Distance from the reference model": quality_table(record),
        "What each model writes": samples_table(record),
        "Memory": memory_table(record),
        "Memory at rest": shared_memory_table(record),
        "INT8 audit": audit_table(record) if audit_of(record) else table((), ()),
        "Trade-off": tradeoff_table(record),
        "Provenance": provenance_table(record),
    }
    return {title: found for title, found in tables.items() if found.rows}


def audit_of(record: Record) -> dict[str, Any] | None:
    """Return what the audit found in the INT8 model; None if the record has no audit."""
    return record.models["INT8"].facts.get("audit") if "INT8" in record.models else None


def show_perplexity(quality: Quality) -> str:
    return with_interval(quality.perplexity, quality.interval(), ".2f")


def perplexity_ratio(quality: Quality, base: Quality) -> str:
    """Return the perplexity ratio with its paired interval, and whether that shows a difference."""
    shown = with_interval(quality.ratio_to(base), quality.ratio_interval(base), ".4f")
    return shown if differs(quality, base) else f"{shown}: {NO_DIFFERENCE}"


def differs(quality: Quality, base: Quality) -> bool:
    """Return whether two perplexities differ: their paired interval does not contain 1, or there is no interval to go by."""
    interval = quality.ratio_interval(base)
    return interval is None or not interval[0] <= 1 <= interval[1]


def with_interval(value: float, interval: tuple[float, ...] | None, form: str) -> str:
    """Return a value with its interval, both in one format; the value alone where there is no interval."""
    numbers = (f"{number:{form}}" for number in (value, *(interval or ())))
    shown, *ends = (number if re.search("[1-9]", number) else number.lstrip("-") for number in numbers)  # -0.00 is 0.00
    return f"{shown} [{ends[0]}, {ends[1]}]" if interval else shown
