import gzip
import re
from html.parser import HTMLParser

import pytest

from gpt2opt import flame_graph
from gpt2opt.report.profile import flame
from tests.report.profile.conftest import cpu_events, event, write


class Bars(HTMLParser):
    """Reads the bars back: what each says when the pointer is on it, and its width in the whole graph, in percent."""

    def __init__(self, html: str):
        super().__init__()
        self.widths, self.open = {}, []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        wide = re.search(r"(?:^|; )width: ([\d.]+)%", found.get("style", ""))
        self.open.append((self.open[-1] if self.open else 100) * (float(wide[1]) / 100 if wide else 1))
        if "title" in found:
            self.widths[found["title"].partition(": ")[0]] = self.open[-1]

    def handle_endtag(self, tag):
        self.open.pop()


def test_each_call_is_as_wide_as_the_time_it_took(traces):
    widths = Bars(flame_graph(traces / "2-prune")._repr_html_()).widths
    assert widths == pytest.approx(
        {"whole recording": 100, "prefill (torch_model.py)": 60, "Conv1D": 50, "aten::addmm": 46, "aten::copy_": 4,
         "decode (torch_model.py)": 30, "aten::add": 10},
        abs=0.02,
    )  # fmt: skip


def test_the_words_say_the_same_as_the_picture(traces):
    graph = flame_graph(str(traces / "2-prune"))
    assert repr(graph).splitlines() == [
        "Flame graph of Pruned, 2-prune: 0.07 ms of CPU time",
        "prefill (torch_model.py): 60%",
        "  Conv1D: 50%",
        "    aten::addmm: 46%",
        "decode (torch_model.py): 30%",
        "  aten::add: 10%",
    ]
    assert 'role="img" aria-label="Flame graph of Pruned' in graph._repr_html_()


def test_the_time_of_a_gpu_comes_first_where_there_is_one(traces):
    graph = flame_graph(traces / "1-profile")
    assert "0.085 ms of GPU time" in repr(graph)
    assert "gemm_kernel" in graph._repr_html_()
    assert "aten::add:" not in graph._repr_html_()


def test_it_asks_nothing_of_a_network_and_names_stay_text(tmp_path):
    write(tmp_path / "mine", [event("<img src=x>", 0, 5)])
    html = flame_graph(tmp_path / "mine")._repr_html_()
    assert "<img" not in html
    assert not re.search(r"script|https?://|url\(|src=(?!x)|href", html)


def test_it_stays_small_and_leaves_out_what_can_not_be_seen(tmp_path):
    nested = [event(f"call {depth}", depth, 1000 - 2 * depth) for depth in range(40)]
    write(tmp_path / "deep", nested)
    write(tmp_path / "wide", [event(f"call {number}", 10 * number, 9) for number in range(5000)])
    assert len(Bars(flame_graph(tmp_path / "deep")._repr_html_()).widths) == flame.MAX_DEPTH
    assert len(Bars(flame_graph(tmp_path / "wide")._repr_html_()).widths) == 1
    write(tmp_path / "model", cpu_events())
    assert len(flame_graph(tmp_path / "model")._repr_html_()) < 60_000


def test_a_folder_without_a_trace_is_refused_with_what_to_do(tmp_path):
    expected = r"traces in .*, expected one: a \.json or \.json\.gz file of any name; record_trace\(work, '.*'\) writes one"
    with pytest.raises(ValueError, match=f"no {expected}"):
        flame_graph(tmp_path)
    for name in ("first", "second"):
        write(tmp_path, cpu_events()).rename(tmp_path / f"{name}.json.gz")
    with pytest.raises(ValueError, match=f"2 {expected}"):
        flame_graph(tmp_path)


def test_a_trace_of_any_name_is_taken(tmp_path):
    content = gzip.decompress(write(tmp_path / "1-profile", cpu_events()).read_bytes())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "profiling results.json").write_bytes(content)
    (tmp_path / "mine" / "run.json").write_text('{"schema": "mine"}')
    mine, ours = (repr(flame_graph(tmp_path / name)) for name in ("mine", "1-profile"))
    assert mine.splitlines()[1:] == ours.splitlines()[1:]
