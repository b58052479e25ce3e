import socket

import matplotlib
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from gpt2opt.report.tables import record_tables
from gpt2opt.report.tensorboard import write_tensorboard
from tests.report.conftest import change, keep, measurement

matplotlib.use("agg")


def shorten(record, stages: int) -> None:
    """Leave the models of the first stages, with two charts, for the time that charts take."""
    keep(record, *("Baseline", "Pruned", "Fine-tuned", "INT8")[:stages])
    for name in record.models:
        change(record, name, quality=None, agreement=None, facts={})


def read_back(log_dir) -> EventAccumulator:
    return EventAccumulator(str(log_dir)).Reload()


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]


def test_scalars_charts_and_tables_are_the_records(record, tmp_path):
    write_tensorboard(record, tmp_path)
    for step, m in enumerate(record.measurements(), 1):
        events = read_back(tmp_path / m.name)
        assert points(events, "perplexity/Some CPU") == [(step, m.quality.perplexity)]
        assert points(events, "bits_per_byte/Some CPU") == [(step, m.quality.bits_per_byte)]
        if m.latency:
            assert points(events, "ttft_ms/Some CPU") == [(step, m.latency.ttft_s * 1e3)]
            assert points(events, "tpot_ms/Some CPU") == [(step, m.latency.tpot_s * 1e3)]
            assert points(events, "file_mb/Some CPU") == [(step, 250.0)]
            assert points(events, "peak_rss_mb/Some CPU") == [(step, 600.0)]
    events = read_back(tmp_path)
    assert len(events.Tags()["images"]) == 8
    for title, table in record_tables(record).items():
        (event,) = events.Tensors(f"{title}/text_summary")
        assert event.tensor_proto.string_val[0].decode() == table.markdown()


def test_gpu_and_cpu_never_share_a_line(gpu_record, tmp_path):
    shorten(gpu_record, stages=4)
    write_tensorboard(gpu_record, tmp_path)
    devices = {name: read_back(tmp_path / name).Tags()["scalars"] for name in ("Baseline", "Pruned", "Fine-tuned", "INT8")}
    for name, tags in devices.items():
        device = "Some CPU" if name == "INT8" else "Some GPU"
        assert f"tpot_ms/{device}" in tags
        assert not [tag for tag in tags if "/" in tag and not tag.endswith(device)]
    assert "peak_rss_mb/Some GPU" not in devices["Baseline"]  # not measured, and so not there
    columns = {column.display_name: column.name.tag for column in experiment(tmp_path).metric_infos}
    assert columns["TPOT, ms, Some GPU"] == "tpot_ms/Some GPU"
    assert columns["TPOT, ms, Some CPU"] == "tpot_ms/Some CPU"


def experiment(log_dir):
    (content,) = read_back(log_dir).PluginTagToContent("hparams").values()
    return hparams.parse_experiment_plugin_data(content)


def test_hparams_list_every_model_with_what_it_is_and_what_was_measured(record, tmp_path):
    shorten(record, stages=2)
    record.models["Halved, by a/b"] = measurement("Halved, by a/b", "float16", "torch", timed=False)
    write_tensorboard(record, tmp_path)
    assert [column.display_name for column in experiment(tmp_path).metric_infos] == [
        "TTFT, ms", "TPOT, ms", "perplexity", "file, MB", "peak RSS, MB", "bits per byte",
    ]  # fmt: skip
    told = {}
    for folder in (path for path in tmp_path.iterdir() if path.is_dir()):
        content = read_back(folder).PluginTagToContent("hparams")["_hparams_/session_start_info"]
        start = hparams.parse_session_start_info_plugin_data(content)
        told[start.group_name] = {name: value.string_value for name, value in start.hparams.items()}
    assert set(told) == {"Baseline", "Pruned", "Halved, by a/b"}
    assert (tmp_path / "Halved, by a-b").is_dir()
    assert told["Halved, by a/b"] == {
        "stage": "2-prune", "control": "yes", "runtime": "torch", "dtype": "float16", "device": "Some CPU",
    }  # fmt: skip
    assert told["Baseline"]["control"] == "no"


def test_the_loss_of_a_training_is_a_curve_of_its_model(record, tmp_path):
    keep(record, "Baseline", "Pruned", "Fine-tuned")
    write_tensorboard(record, tmp_path)
    events = read_back(tmp_path / "Fine-tuned")
    assert points(events, "loss_nats") == [(1, 3.0), (2, 2.5)]
    assert points(events, "validation_loss_nats") == [(0, 3.5), (2, 2.75)]


def test_the_log_is_written_again_and_does_not_name_the_machine(record, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "the-name-of-this-machine")
    shorten(record, stages=1)
    (tmp_path / "A model of before").mkdir()
    (tmp_path / "A model of before" / "events.out.tfevents.0.gpt2opt").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "events.out.tfevents.1.mine").write_text("")
    for _ in range(2):
        write_tensorboard(record, tmp_path)
    logs = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    name = "events.out.tfevents.0.gpt2opt"
    assert sorted(logs) == [f"Baseline/{name}", name, "mine/events.out.tfevents.1.mine"]
    assert not (tmp_path / "A model of before").exists()
    assert not any(b"the-name-of-this-machine" in (tmp_path / log).read_bytes() for log in logs)
    assert len(points(read_back(tmp_path / "Baseline"), "ttft_ms/Some CPU")) == 1
