"""A record in TensorBoard: the same figures, charts and tables as in the report, and a run for each model that was measured."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2opt.report import compare
from gpt2opt.report.charts import draw_charts
from gpt2opt.report.tables import record_tables, stand_in_notice
from gpt2opt.run.record import Measurement, Record, Role

OURS = "events.out.tfevents.*.gpt2opt"
FIGURES = compare.FIGURES | {"bits per byte": ("quality", "bits_per_byte", str)}
"""HParams shows the first five by default."""
UNITS = {"ms": 1e3, "MB": 1e-6}
FACTS = ("stage", "control", "runtime", "dtype", "device")
"""What HParams shows of a model beside its figures."""


def write_tensorboard(record: Record, log_dir: Path) -> None:
    """Write a record as TensorBoard events, in place of those that are there.

    Each model is a run of its name in a folder of its own: its figures as scalars named `figure/device`, so that a GPU and a CPU never
    share an axis, with its place in the record as the step; and its loss over the steps of its training. HParams lists the models in one
    table. Charts are under Images, tables and samples under Text.
    """
    for folder in (log_dir, *(path for path in log_dir.glob("*") if path.is_dir())):
        empty_log(folder)
        if folder != log_dir and not any(folder.iterdir()):  # a model of an earlier record
            folder.rmdir()
    measured = list(record.models.values())
    with _writer(log_dir) as writer:
        writer.file_writer.add_summary(_experiment(measured))
        for name, figure in draw_charts(record):
            writer.add_figure(name, figure, len(record.stages), close=False)
        writer.add_text("What was replaced", stand_in_notice(record), len(record.stages))
        for title, table in record_tables(record).items():
            writer.add_text(title, table.markdown(), len(record.stages))
    for step, measurement in enumerate(measured, 1):
        with _writer(log_dir / measurement.name.replace("/", "-")) as writer:
            _write_model(writer, step, measurement, record.role(measurement.name))


@contextmanager
def _writer(folder: Path) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        yield writer
    drop_host_names(folder)


def _write_model(writer, step: int, measurement: Measurement, role: Role) -> None:
    from tensorboard.plugins.hparams import summary_v2 as hparams
    from torch.utils.tensorboard.summary import hparams as torch_hparams

    facts = (role.stage, "yes" if role.control else "no", measurement.runtime, measurement.dtype, measurement.device)
    start = hparams.hparams_pb(dict(zip(FACTS, facts, strict=True)), trial_id=measurement.name, start_time_secs=0)
    *_, end = torch_hparams({}, {})
    writer.file_writer.add_summary(start)
    writer.file_writer.add_summary(end)
    for title, value in _scalars(measurement).items():
        writer.add_scalar(_tag(title, measurement.device), value, step)
    for curve in ("loss", "validation_loss"):
        for point in measurement.facts.get(curve, ()):
            writer.add_scalar(f"{curve}_nats", point["loss_nats"], point["step"])


def _experiment(measurements: Sequence[Measurement]) -> Any:
    """Return the columns of HParams' table. A figure of two devices has a column for each."""
    from tensorboard.plugins.hparams import summary_v2 as hparams  # what hparams.api offers too, but that one imports tensorflow

    columns = dict.fromkeys((title, measurement.device) for measurement in measurements for title in _scalars(measurement))
    several = len({device for _, device in columns}) > 1
    metrics = [
        hparams.Metric(_tag(title, device), display_name=f"{title}, {device}" if several else title)
        for title, device in sorted(columns, key=lambda column: list(FIGURES).index(column[0]))
    ]
    return hparams.hparams_config_pb([hparams.HParam(fact) for fact in FACTS], metrics)


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
    """Return what was measured by its title, in the unit that the title names."""
    values = {title: getattr(getattr(measurement, part), attribute, None) for title, (part, attribute, *_) in FIGURES.items()}
    return {title: value * UNITS.get(title[-2:], 1) for title, value in values.items() if value is not None}


def _tag(title: str, device: str) -> str:
    return f"{title.lower().replace(',', '').replace(' ', '_')}/{device}"
