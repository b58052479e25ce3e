import json
import re

import pytest
import torch

from gpt2opt.measure.results import Latency
from gpt2opt.measure.trace import read_trace
from gpt2opt.report.chart import COLORS, CONTROL
from gpt2opt.report.conclusions import conclude_profile
from gpt2opt.report.profile.page import page, remove_page, script, write_pages
from gpt2opt.report.profile.summary import measured_ratios, summarize
from tests.report.conftest import change, make_record
from tests.report.profile.conftest import cpu_events, event, write


def data_in(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="profiles">(.*?)</script>', html, re.DOTALL)[1])


def test_a_trace_of_a_stage_is_named_and_coloured_as_its_model(traces):
    profile = summarize(traces / "2-prune" / "gpt2opt.pt.trace.json.gz", "2-prune")
    assert (profile["model"], profile["color"], profile["runtime"]) == ("Pruned", COLORS["Pruned"], "torch")
    assert [(name, end > start) for name, start, end in profile["phases"]] == [("prefill", True), ("decode", True)]
    other = summarize(traces / "2-prune" / "gpt2opt.pt.trace.json.gz", "somebody's")
    assert (other["model"], other["color"]) == (None, CONTROL)


def test_the_tree_is_packed_with_names_of_its_own(traces):
    profile = summarize(traces / "4-quantize" / "gpt2opt.pt.trace.json.gz", "4-quantize")
    assert profile["runtime"] == "OpenVINO 2026.4.1"
    assert profile["names"][-1] == ("FullyConnected", "operator", "brgemm_I8 × 1, jit_f32 × 1")
    assert profile["tree"] == [0, 1, 20, 0, [[1, 1, 15, 0, [[2, 2, 12, 0, []]]]]]
    assert profile["operators"] == [
        {"name": "FullyConnected", "kind": "operator", "note": "brgemm_I8 × 1, jit_f32 × 1", "calls": 2,
         "own": {"cpu": 12, "gpu": 0}, "total": {"cpu": 12, "gpu": 0}}
    ]  # fmt: skip


def test_pages_are_one_file_each_and_ask_nothing_of_a_network(traces, tmp_path):
    for folder in traces.iterdir():
        write(tmp_path / folder.name, cpu_events())
    written = write_pages(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "1-profile/profile.html", "2-prune/profile.html", "4-quantize/profile.html", "profiles.html",
    ]  # fmt: skip
    for path in written:
        html = path.read_text(encoding="utf-8")
        assert "default-src 'none'" in html
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|\bimport\b|@import|<link(?! rel=\"icon\" href=\"data:)|\bfetch\(", html)
        assert len(html) < 60_000
    assert [profile["name"] for profile in data_in(written[-1].read_text())["profiles"]] == ["1-profile", "2-prune", "4-quantize"]


def test_names_with_tags_in_them_end_no_script(tmp_path):
    path = write(tmp_path / "a", [event("</script><b>", 0, 5)])
    html = page([summarize(path, "a")])
    assert html.count("</script>") == 2
    assert data_in(html)["profiles"][0]["operators"][0]["name"] == "</script><b>"


def test_modules_are_joined_into_one_script():
    assert "drawIcicle(" in script()
    assert not re.search(r"^(import|export) ", script(), re.MULTILINE)


def test_a_page_of_somebody_else_is_left_alone(tmp_path):
    write(tmp_path / "1-profile", cpu_events())
    mine = tmp_path / "1-profile" / "profile.html"
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"profile\.html is there and was not written by gpt2opt"):
        write_pages(tmp_path)
    remove_page(mine)
    assert mine.read_text() == "mine"
    mine.write_text(page([]))
    remove_page(mine)
    assert not mine.exists()


def test_without_traces_there_are_no_pages(tmp_path):
    assert write_pages(tmp_path) == []


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "holds no call"),
        ([{"ts": 1, "ph": "X", "cat": "cpu_op", "name": "no duration"}], "not as in Chrome's format"),
        ({}, "is no trace"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path, events, message):
    with pytest.raises(ValueError, match=message):
        summarize(write(tmp_path, events), "a")


def timed(scale: float) -> Latency:
    """Of eight rounds: TTFT from `scale` × 10 s on, TPOT 1 and 2 ms in turns."""
    return Latency(tuple(scale * (10 + number) for number in range(8)), (1e-3, 2e-3) * 8, 1, 1, 8, 3)


def test_two_profiles_have_the_ratio_that_was_measured_in_turns_whichever_comes_first(tmp_path):
    record = make_record()
    change(record, "Pruned", latency=timed(0.5), in_turns={"Baseline": timed(1)})
    record.write(tmp_path / "run.json")
    for folder in ("1-profile", "2-prune", "3-finetune", "mine"):
        write(tmp_path / folder, cpu_events())
    write_pages(tmp_path)
    ratios = {profile["name"]: profile["ratios"] for profile in data_in((tmp_path / "profiles.html").read_text())["profiles"]}
    assert ratios["3-finetune"] == ratios["mine"] == {}
    assert ratios["2-prune"].keys() == {"1-profile", "2-control-baseline", "3-control-baseline"}
    assert len(set(ratios["2-prune"].values())) == 1
    assert ratios["2-prune"]["1-profile"].startswith(
        "Timed in turns and without a profiler, Pruned ÷ Baseline (median of the rounds, 95% interval): "
        "TTFT 0.500 [0.500, 0.500]; TPOT 1.000 [1.000, 1.000]: no measurable difference. "
    )
    assert "Baseline ÷ Pruned (median of the rounds, 95% interval): TTFT 2.000 [2.000, 2.000]" in ratios["1-profile"]["2-prune"]
    assert "of a friend/1-profile" in measured_ratios(tmp_path / "run.json", "of a friend/2-prune")


@pytest.mark.parametrize(
    "content", [None, "cut", '{"mine": 1}', '{"schema": "gpt2opt.run/3"}', '{"schema": "gpt2opt.run/3", "stages": [1]}']
)
def test_without_a_record_there_is_no_ratio(tmp_path, content):
    if content:
        (tmp_path / "run.json").write_text(content)
    assert summarize(write(tmp_path / "2-prune", cpu_events()), "2-prune")["ratios"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, the notebook tells of its time")
def test_the_share_of_an_operator_is_the_same_on_the_page_and_in_the_notebook(tmp_path):
    path = write(tmp_path / "1-profile", cpu_events())
    first, *others = [row["own"]["cpu"] for row in summarize(path, "1-profile")["operators"]]
    record = make_record()
    record.models["Baseline"].facts.update(operator_seconds=read_trace(path.parent).operators, known_perplexities=None)
    assert f"aten::addmm takes {first / (first + sum(others)):.0%} of the own time of all operators" in conclude_profile(record)


def test_where_no_script_runs_there_is_a_table_of_operators_and_what_to_do(tmp_path):
    html = page(
        [summarize(write(tmp_path / "a", [event("aten::<b>", 0, 30), event("aten::add", 40, 10), event("aten::add", 50, 10)]), "a")]
    )
    still = re.search(r"<noscript>(.*?)</noscript>", html, re.DOTALL)[1]
    assert "press <b>Trust HTML</b>" in still
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(<td>.*?)</tr>", still, re.DOTALL)]
    assert rows == [["aten::&lt;b&gt;", "0.03", "60.0%", "1"], ["aten::add", "0.02", "40.0%", "2"]]
