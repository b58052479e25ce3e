import dataclasses
import socket

import matplotlib
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2opt.report.tables import record_tables
from gpt2opt.report.tensorboard import write_tensorboard

matplotlib.use("agg")


def shorten(record, stages: int) -> None:
    """Leave the first stages, with two charts, for the time that charts take."""
    record.stages = [
        dataclasses.replace(stage, measurement=dataclasses.replace(stage.measurement, quality=None, agreement=None, facts={}), controls=())
        for stage in record.stages[:stages]
    ]


def read_back(log_dir) -> EventAccumulator:
    return EventAccumulator(str(log_dir)).Reload()


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]


def test_scalars_charts_and_tables_are_the_records(record, tmp_path):
    write_tensorboard(record, tmp_path)
    events = read_back(tmp_path)
    stages = list(enumerate((stage.measurement for stage in record.stages), 1))
    assert points(events, "ttft_ms/Some CPU") == [(step, m.latency.ttft_s * 1e3) for step, m in stages]
    assert points(events, "tpot_ms/Some CPU") == [(step, m.latency.tpot_s * 1e3) for step, m in stages]
    assert points(events, "perplexity/Some CPU") == [(step, m.quality.perplexity) for step, m in stages]
    assert points(events, "bits_per_byte/Some CPU") == [(step, m.quality.bits_per_byte) for step, m in stages]
    assert points(events, "file_mb/Some CPU") == [(step, 250.0) for step, _ in stages]
    assert points(events, "peak_rss_mb/Some CPU") == [(step, 600.0) for step, _ in stages]
    assert points(events, "tpot_ms/Some CPU, FP32") == [(4, 15.0)]  # a control
    assert len(events.Tags()["images"]) == 8
    for title, table in record_tables(record).items():
        (event,) = events.Tensors(f"{title}/text_summary")
        assert event.tensor_proto.string_val[0].decode() == table.markdown()


def test_gpu_and_cpu_never_share_a_line(gpu_record, tmp_path):
    shorten(gpu_record, stages=4)
    write_tensorboard(gpu_record, tmp_path)
    events = read_back(tmp_path)
    assert [step for step, _ in points(events, "tpot_ms/Some GPU")] == [1, 2, 3]
    assert [step for step, _ in points(events, "tpot_ms/Some CPU")] == [4]
    assert "peak_rss_mb/Some GPU" not in events.Tags()["scalars"]  # not measured, and so not there


def test_the_log_is_written_anew_and_does_not_name_the_machine(record, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "the-name-of-this-machine")
    shorten(record, stages=1)
    for _ in range(2):
        write_tensorboard(record, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["events.out.tfevents.0.gpt2opt"]
    assert b"the-name-of-this-machine" not in (tmp_path / "events.out.tfevents.0.gpt2opt").read_bytes()
    assert len(points(read_back(tmp_path), "ttft_ms/Some CPU")) == 1
