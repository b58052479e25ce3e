"""Tables for people: aligned text on a terminal, Markdown in the notebook and the README. Units are converted here and only here."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpt2opt.report.record import Record
from gpt2opt.report.results import Measurement, Quality

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; a notebook shows it as Markdown, print() as aligned text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.header, tuple("-" * width for width in widths), *self.rows]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)

    def _repr_markdown_(self) -> str:
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)

    markdown = _repr_markdown_


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    return Table(tuple(header), tuple(tuple(row) for row in rows))


def environment_table(record: Record) -> Table:
    """Say what the run was taken with: model, text, machine, versions."""
    facts = record.environment
    sources = record.sources
    return table(
        ("what", "value"),
        [
            ("model", _source(sources["model"])),
            ("text", _source(sources["text"])),
            ("CPU", f"{facts['cpu']}, {facts['threads']} threads, {', '.join(facts['cpu_flags']) or 'no known INT8 instructions'}"),
            ("GPU", facts["gpu"] or "none: stages 1 to 3 are measured on the CPU"),
            ("memory", gigabytes(facts["memory_bytes"])),
            ("Python", facts["python"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ],
    )


def _source(source: dict) -> str:
    return f"{source['name']} (from the {source['origin']})"


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
        ("stage", "weights", "runtime", "device", "TTFT ms", "TPOT ms (p95)", "perplexity [95%]", "bits/byte", "file MB", "peak memory MB"),
        [_summary_row(measurement, control) for measurement, control in record.measurements()],
    )


def _summary_row(measurement: Measurement, control: bool) -> tuple[str, ...]:
    latency, memory, quality = measurement.latency, measurement.memory, measurement.quality
    return (
        f"{measurement.name}{' (control)' if control else ''}",
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


def stage_table(record: Record, name: str) -> Table:
    """Show one stage beside the stage before it and beside its controls."""
    stage = record.stage(name)
    position = record.stages.index(stage)
    before = [record.stages[position - 1].measurement] if position else []
    rows = [(m, False) for m in (*before, stage.measurement)] + [(m, True) for m in stage.controls]
    return table(summary_table(record).header, [_summary_row(measurement, control) for measurement, control in rows])


def memory_table(record: Record) -> Table:
    """Show what each measured model takes on disk, in the RAM of a fresh process that generates, step by step, and in VRAM."""
    return table(
        (
            "stage", "weights on disk MB", "RSS at start MB", "loaded MB", "steady MB", "peak RSS MB",
            "steady PSS MB", "steady USS MB", "steady file-backed MB", "VRAM MB: allocated / reserved / driver",
        ),
        [_memory_row(measurement, control) for measurement, control in record.measurements() if measurement.memory],
    )  # fmt: skip


def _memory_row(measurement: Measurement, control: bool) -> tuple[str, ...]:
    memory = measurement.memory
    steady = memory.steady
    vram = (memory.peak_vram_bytes, memory.peak_vram_reserved_bytes, memory.driver_vram_bytes)
    return (
        f"{measurement.name}{' (control)' if control else ''}",
        megabytes(memory.weight_bytes),
        *(_size(memory.start_rss_bytes), _size(memory.loaded and memory.loaded.rss_bytes), _size(steady and steady.rss_bytes)),
        _size(memory.peak_rss_bytes),
        *((megabytes(steady.pss_bytes), megabytes(steady.uss_bytes), megabytes(steady.file_bytes)) if steady else [MISSING] * 3),
        MISSING if memory.peak_vram_bytes is None else " / ".join(map(_size, vram)),
    )


def _size(size: int | None) -> str:
    return MISSING if size is None else megabytes(size)


def audit_table(record: Record) -> Table:
    """Show, for each kind of matmul, how many there are, what their weights are stored as, and what both graphs multiply."""
    audit = record.stage("4-quantize").facts["audit"]
    kinds = dict.fromkeys(name.split(".", 2)[-1] for name in audit["in_file"])
    rows = []
    for kind in kinds:
        names = [name for name in audit["in_file"] if name.split(".", 2)[-1] == kind]
        stored = ", ".join(sorted({audit["in_file"][name] for name in names}))
        rows.append((kind, str(len(names)), stored, _products(audit["reading"], names), _products(audit["decoding"], names)))
    return table(("matmul", "how many", "weights stored as", "reading a prompt: input × weight", "decoding: input × weight"), rows)


def _products(executed: dict[str, Sequence[str]], names: list[str]) -> str:
    counts = Counter(" × ".join(executed[name]) for name in names)
    return ", ".join(f"{count} {product}" if len(counts) > 1 else product for product, count in counts.most_common())


def quality_table(record: Record) -> Table:
    """Show how far each INT8 model of stage 4 is from the FP32 model that it was made from, on the scored text."""
    stage = record.stage("4-quantize")
    base = stage.control("FP32").quality
    rows = []
    for measurement in (stage.measurement, *stage.controls):
        if agreement := measurement.agreement:
            kl, same = agreement.mean_kl_interval(), agreement.top1_interval()
            rows.append(
                (
                    measurement.name,
                    perplexity_ratio(measurement.quality, base),
                    f"{agreement.mean_kl:.5f} [{kl[0]:.5f}, {kl[1]:.5f}]",
                    f"{agreement.kl_p99:.4f}",
                    f"{agreement.top1:.2%} [{same[0]:.2%}, {same[1]:.2%}]",
                )
            )
    return table(("model", "perplexity / FP32 [95%]", "mean KL, nats [95%]", "KL p99", "same top token [95%]"), rows)


def peak_memory(measurement: Measurement) -> str:
    memory = measurement.memory
    if memory is None:
        return MISSING
    if memory.peak_vram_bytes is not None:
        return f"{megabytes(memory.peak_vram_bytes)} VRAM"
    return f"{megabytes(memory.peak_rss_bytes)} RSS" if memory.peak_rss_bytes is not None else MISSING


def show_perplexity(quality: Quality) -> str:
    low, high = quality.interval()
    return f"{quality.perplexity:.2f} [{low:.2f}, {high:.2f}]"


def perplexity_ratio(quality: Quality, base: Quality) -> str:
    """Return the perplexity ratio with its paired interval."""
    low, high = quality.ratio_interval(base)
    return f"{quality.ratio_to(base):.4f} [{low:.4f}, {high:.4f}]"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.3g}" if size < 1e9 else f"{size / 1e6:.0f}"


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
