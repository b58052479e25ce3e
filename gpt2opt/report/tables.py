"""Tables for people: aligned text on a terminal, Markdown in the notebook and the README."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from gpt2opt.environment import instructions_label
from gpt2opt.measure.results import Latency, Quality
from gpt2opt.measure.stats import PERCENT, Estimate
from gpt2opt.report.table import MISSING, Table, gigabytes, megabytes, milliseconds, table
from gpt2opt.run.record import QUANTIZE, Measurement, Record, dominated_by

NO_DIFFERENCE = "no measurable difference"
CHAIN = ("Baseline", "Pruned", "Fine-tuned", "FP32", "INT8")


def environment_table(record: Record) -> Table:
    """Say what the run was taken with: model, text, machine, versions."""
    facts = record.environment
    sources = record.sources
    return table(
        ("what", "value"),
        [
            ("model", _source(sources["model"])),
            ("text", _source(sources["text"])),
            ("CPU", f"{facts['cpu']}, {facts['threads']} threads, {instructions_label(facts['cpu_flags'])}"),
            ("how threads wait", facts.get("wait_policy") or "as their library does by default"),
            ("GPU", facts["gpu"] or "none: stages 1 to 3 are measured on the CPU"),
            ("memory", gigabytes(facts["memory_bytes"])),
            ("Python", facts["python"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ],
    )


def _source(source: dict) -> str:
    revision = f", revision {source['revision']}" if source.get("revision") else ""
    return f"{source['name']} (from the {source['origin']}{revision})"


def stand_in_notice(record: Record) -> str:
    """Say what stands in for something else in this run, and how to get the real one; or that nothing does."""
    lines = []
    if record.sources["model"]["stand_in"]:
        lines.append(
            "Model: the bundled GPT-2 stands in for `gpt2`, which could not be had. For the real one, connect and run again, or set "
            "GPT2OPT_MODEL to a directory that holds it."
        )
    if record.sources["text"]["stand_in"]:
        lines.append(
            f"Text: the {record.sources['text']['name']} stands in for WikiText-2, which could not be had. For the real one, connect and "
            "run again, or set GPT2OPT_TEXT to a UTF-8 file."
        )
    if record.environment["gpu"] is None:
        lines.append("GPU: none; FP16 runs on the CPU, and memory is RAM, not VRAM.")
    return "\n".join(lines) or "Nothing stands in: the model and the text are the ones asked for, and FP16 runs on a GPU."


def summary_table(record: Record) -> Table:
    """Show every measurement of a run, controls included, in the order they were taken."""
    return table(
        (
            "stage", "weights", "runtime", "device", "TTFT ms", "TPOT ms (p95)", f"perplexity [{PERCENT}]", "bits/byte", "file MB",
            "peak memory MB",
        ),
        [_summary_row(record, measurement) for measurement in record.measurements()],
    )  # fmt: skip


def _summary_row(record: Record, measurement: Measurement) -> tuple[str, ...]:
    latency, memory, quality = measurement.latency, measurement.memory, measurement.quality
    return (
        _named(record, measurement),
        measurement.dtype,
        measurement.runtime,
        measurement.device,
        milliseconds(latency.ttft_s) if latency else MISSING,
        f"{milliseconds(latency.tpot_s)} ({milliseconds(latency.tpot_p95_s)})" if latency else MISSING,
        show_perplexity(quality) if quality else MISSING,
        f"{quality.bits_per_byte:.3f}" if quality else MISSING,
        megabytes(memory.weight_bytes) if memory else MISSING,
        peak_memory(measurement),
    )


def chain_table(record: Record) -> Table:
    """Show the models that the stages hand on, and FP32 beside INT8, without what the tables of the stages have besides."""
    summary = summary_table(record)
    columns = [place for place, name in enumerate(summary.header) if name not in ("device", "bits/byte")]
    rows = [row for row in summary.rows if row[0].removesuffix(" (control)") in CHAIN]
    return table([summary.header[place] for place in columns], [[row[place] for place in columns] for row in rows])


def stage_table(record: Record, name: str) -> Table:
    """Show one stage beside the stage before it and beside its controls."""
    record.stage(name)  # or it raises
    before = [record.stage(stage).name for stage in record.stages if stage < name][-1:]
    shown = [m for m in record.measurements(name) if m.name in before or record.role(m.name).stage == name]
    return table(summary_table(record).header, [_summary_row(record, measurement) for measurement in shown])


def memory_table(record: Record) -> Table:
    """Show what each measured model takes on disk, in the RAM of a fresh process that generates, step by step, and in VRAM."""
    header = (
        "stage",
        "weights on disk MB",
        "RSS at start MB",
        "loaded MB",
        "steady MB",
        "peak RSS MB",
        "VRAM MB: allocated / reserved / driver",
    )
    return table(header, [_memory_row(record, measurement) for measurement in record.measurements() if measurement.memory])


def _memory_row(record: Record, measurement: Measurement) -> tuple[str, ...]:
    memory = measurement.sized
    start, loaded, steady = memory.start_rss_bytes, memory.loaded, memory.steady
    vram = (memory.peak_vram_bytes, memory.peak_vram_reserved_bytes, memory.driver_vram_bytes)
    return (
        _named(record, measurement),
        megabytes(memory.weight_bytes),
        *map(_size, (start, loaded.rss_bytes if loaded else None, steady.rss_bytes if steady else None)),
        _size(memory.peak_rss_bytes),
        MISSING if memory.peak_vram_bytes is None else " / ".join(map(_size, vram)),
    )


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
    """Show, for each kind of matmul, how many there are, what their weights are stored as, and what both graphs multiply."""
    audit = record.stage(QUANTIZE).facts["audit"]
    kinds = dict.fromkeys(name.split(".", 2)[-1] for name in audit["in_file"])
    rows = []
    for kind in kinds:
        names = [name for name in audit["in_file"] if name.split(".", 2)[-1] == kind]
        stored = ", ".join(sorted({audit["in_file"][name] for name in names}))
        rows.append((kind, str(len(names)), stored, _products(audit["prefill"], names), _products(audit["decode"], names)))
    return table(("matmul", "how many", "weights stored as", "prompts: input × weight", "further tokens: input × weight"), rows)


def explain_products(prefill: Mapping[str, Sequence[str]], decode: Mapping[str, Sequence[str]]) -> str:
    """Say why an audit shows float inputs for further tokens where prompts have INT8 ones; empty if it does not.

    Args:
        prefill, decode: name of a matmul -> the types of its input and of its weight, in the graph that reads prompts and in that which
            decodes.
    """
    if not any(prefill[name][0] != "f32" == decode[name][0] for name in decode if name in prefill):
        return ""
    return (
        "Prompts are read with INT8 inputs and INT8 weights. The graph that decodes further tokens has the same INT8 weights and float "
        "inputs. OpenVINO rounds these to INT8 inside each product, by ranges that it takes from the inputs themselves (dynamic "
        "quantization). With one row of inputs most of the time goes into reading the weights, and quantizers in the graph would add to it."
    )


def _products(executed: dict[str, Sequence[str]], names: list[str]) -> str:
    counts = Counter(" × ".join(executed[name]) for name in names)
    return ", ".join(f"{count} {product}" if len(counts) > 1 else product for product, count in counts.most_common())


def quality_table(record: Record) -> Table:
    """Show how far each model is from its reference model on the scored text, at every stage that was run."""
    measured = {measurement.name: measurement for measurement in record.measurements()}
    rows = []
    for name, measurement in measured.items():
        if agreement := measurement.agreement:
            rows.append(
                (
                    name,
                    agreement.reference,
                    perplexity_ratio(measurement.scored, measured[agreement.reference].scored),
                    with_interval(agreement.mean_kl, agreement.mean_kl_interval(), ".5f"),
                    with_interval(agreement.kl_p99, agreement.kl_p99_interval, ".4f"),
                    with_interval(agreement.top1, agreement.top1_interval(), ".2%"),
                )
            )
    figures = ("perplexity / reference's", "mean KL, nats", "KL p99", "same top token")
    header = ("model", "its reference model", *(f"{figure} [{PERCENT}]" for figure in figures))
    return table(header, rows)


def speed_table(record: Record) -> Table:
    """Show every pair of models that was timed in turns: their times in these rounds, and the ratio, or that none was measurable."""
    rows = []
    for pair in record.comparisons():
        one, base = pair.latency, pair.base_latency
        rows.append(
            (
                f"{pair.name} / {pair.base}",
                f"{milliseconds(one.ttft_s)} / {milliseconds(base.ttft_s)}",
                show_ratio(pair.ttft),
                f"{milliseconds(one.tpot_s)} / {milliseconds(base.tpot_s)}",
                show_ratio(pair.tpot),
                str(len(one.ttft_samples_s)),
                _others(one),
            )
        )
    ratio, runs = f"ratio [{PERCENT}]", ("runs of each, in turns", "cores taken by others")
    return table(("models", "TTFT ms", f"TTFT {ratio}", "TPOT ms", f"TPOT {ratio}", *runs), rows)


def show_ratio(ratio: Estimate) -> str:
    shown = with_interval(ratio.value, (ratio.low, ratio.high), ".3f")
    return shown if ratio.measurable else f"{shown}: {NO_DIFFERENCE}"


def _others(latency: Latency) -> str:
    return MISSING if latency.others_cpu_share is None else f"{latency.others_cpu_share:.0%}"


def samples_table(record: Record, most: int | None = None) -> Table:
    """Show sample prompts and what every model wrote behind them; `‖` stands before the first token that its reference would not write.

    Args:
        record: of a run.
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


def divergence(tokens: Sequence[str], reference: Sequence[str]) -> int:
    """Return how many tokens are the same before the first that differs."""
    return next((position for position, (ours, theirs) in enumerate(zip(tokens, reference, strict=True)) if ours != theirs), len(tokens))


def _marked(tokens: Sequence[str], reference: Sequence[str]) -> str:
    same = divergence(tokens, reference)
    text = "".join(tokens[:same]) + ("‖" + "".join(tokens[same:]) if same < len(tokens) else "")
    return " ".join(text.split())


def tradeoff_table(record: Record) -> Table:
    """Say of every measurement with all three figures whether it is on the Pareto front, or which others dominate it."""
    whole = [m for m in record.measurements() if m.latency and m.quality and m.memory]
    rows = []
    for measurement in whole:
        better = [other.name for other in dominated_by(measurement, whole)]
        place = f"dominated by {', '.join(better)}" if better else "on the front"
        latency, quality, memory = measurement.timed, measurement.scored, measurement.sized
        figures = (milliseconds(latency.tpot_s), f"{quality.perplexity:.2f}", megabytes(memory.weight_bytes))
        rows.append((measurement.name, measurement.device, *figures, place))
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
    tables = {"Environment": environment_table(record), "Settings": settings_table(record)}
    if record.models:
        tables["Summary"] = summary_table(record)
    if record.comparisons():
        tables["Timed in turns"] = speed_table(record)
    if any(measurement.agreement for measurement in record.measurements()):
        tables["Distance from the reference model"] = quality_table(record)
    if any(measurement.continuations for measurement in record.measurements()):
        tables["What each model writes"] = samples_table(record)
    if any(measurement.memory for measurement in record.measurements()):
        tables["Memory"] = memory_table(record)
    if any(measurement.memory and measurement.memory.steady for measurement in record.measurements()):
        tables["Memory at rest"] = shared_memory_table(record)
    if QUANTIZE in record.stages and "prefill" in record.stage(QUANTIZE).facts.get("audit", {}):
        tables["INT8 audit"] = audit_table(record)
    if record.models:
        tables |= {"Trade-off": tradeoff_table(record), "Provenance": provenance_table(record)}
    return tables


def peak_memory(measurement: Measurement) -> str:
    memory = measurement.memory
    if memory is None:
        return MISSING
    if memory.peak_vram_bytes is not None:
        return f"{megabytes(memory.peak_vram_bytes)} VRAM"
    return f"{megabytes(memory.peak_rss_bytes)} RSS" if memory.peak_rss_bytes is not None else MISSING


def show_perplexity(quality: Quality) -> str:
    return with_interval(quality.perplexity, quality.interval(), ".2f")


def perplexity_ratio(quality: Quality, base: Quality) -> str:
    """Return the perplexity ratio with its paired interval, and whether that shows a difference."""
    interval = quality.ratio_interval(base)
    shown = with_interval(quality.ratio_to(base), interval, ".4f")
    return f"{shown}: {NO_DIFFERENCE}" if interval and interval[0] <= 1 <= interval[1] else shown


def with_interval(value: float, interval: tuple[float, ...] | None, form: str) -> str:
    """Return a value with its interval, both in one format; the value alone where there is no interval."""
    shown, *ends = (_unsigned_zero(f"{number:{form}}") for number in (value, *(interval or ())))
    return f"{shown} [{ends[0]}, {ends[1]}]" if interval else shown


def _unsigned_zero(shown: str) -> str:
    return shown if any(digit in "123456789" for digit in shown) else shown.lstrip("-")
