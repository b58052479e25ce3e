"""A record in TensorBoard: the same figures, charts and tables as in the report."""

import os
from pathlib import Path

from gpt2opt.record import Measurement, Record
from gpt2opt.report.charts import draw_charts
from gpt2opt.report.tables import record_tables, stand_in_notice

OURS = "events.out.tfevents.*.gpt2opt"


def write_tensorboard(record: Record, log_dir: Path) -> None:
    """Write a record as TensorBoard events, in place of those that are there.

    Scalars are named `figure/device`, controls `figure/device, name`, so that a GPU and a CPU never share a line; the step is the number
    of the stage. Charts are under Images, tables under Text.
    """
    from torch.utils.tensorboard import SummaryWriter

    log_dir = Path(log_dir)
    empty_log(log_dir)
    with SummaryWriter(str(log_dir)) as writer:
        for step, stage in enumerate(record.stages, 1):
            for measurement in (stage.measurement, *stage.controls):
                line = measurement.device if measurement is stage.measurement else f"{measurement.device}, {measurement.name}"
                for figure, value in _scalars(measurement).items():
                    writer.add_scalar(f"{figure}/{line}", value, step)
        for name, figure in draw_charts(record):
            writer.add_figure(name, figure, len(record.stages), close=False)
        writer.add_text("What stands in", stand_in_notice(record), len(record.stages))
        for title, table in record_tables(record).items():
            writer.add_text(title, table.markdown(), len(record.stages))
    drop_host_names(log_dir)


def empty_log(log_dir: Path) -> None:
    """Remove the event files that an earlier run of ours left: TensorBoard would draw both on one line."""
    for path in (*log_dir.glob(OURS), *_of_this_process(log_dir)):
        path.unlink()


def drop_host_names(log_dir: Path) -> None:
    """Rename the event files of this process, which carry the name of the machine; the logs are handed in with the notebook."""
    for number, path in enumerate(_of_this_process(log_dir)):
        path.rename(path.with_name(f"events.out.tfevents.{number}.gpt2opt"))


def _of_this_process(log_dir: Path) -> list[Path]:
    return sorted(log_dir.glob(f"events.out.tfevents.*.{os.getpid()}.*"))


def _scalars(measurement: Measurement) -> dict[str, float]:
    """Return what was measured, in the units of the tables."""
    latency, memory, quality = measurement.latency, measurement.memory, measurement.quality
    found: dict[str, float | None] = {}
    if latency:
        found |= {"ttft_ms": latency.ttft_s * 1e3, "tpot_ms": latency.tpot_s * 1e3}
    if quality:
        found |= {"perplexity": quality.perplexity, "bits_per_byte": quality.bits_per_byte}
    if memory:
        sizes = {"file_mb": memory.weight_bytes, "peak_rss_mb": memory.peak_rss_bytes, "peak_vram_mb": memory.peak_vram_bytes}
        found |= {name: None if size is None else size / 1e6 for name, size in sizes.items()}
    return {name: value for name, value in found.items() if value is not None}
