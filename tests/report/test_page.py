import base64
import dataclasses
import re
from html.parser import HTMLParser

import matplotlib
import pytest

from gpt2opt.report.page import write_report
from gpt2opt.report.tables import record_tables
from tests.report.conftest import change, keep

matplotlib.use("agg")
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Reads a page back: its text, its headings, the addresses it names, and whether every tag is closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.addresses, self.open, self.words, self.headings = [], [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


def shorten(record) -> None:
    """Leave one stage with one chart, for the time that charts take."""
    keep(record, "Baseline")
    change(record, "Baseline", latency=None, memory=None, facts={})


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")

    def page(*records) -> tuple[str, Page]:
        write_report(records, folder / "report.html")
        html = (folder / "report.html").read_text(encoding="utf-8")
        return html, Page(html)

    return page


def test_the_page_holds_every_table_and_chart_in_order_and_asks_nothing_of_a_network(record, write):
    html, page = write(record)
    assert page.headings == [
        "The run", "Charts", "Environment", "Settings", "Summary", "Timed in turns",
        "Distance from the reference model", "What each model writes",
        "Memory", "Memory at rest", "INT8 audit", "Trade-off", "Provenance",
    ]  # fmt: skip
    for table in record_tables(record).values():
        for row in (table.header, *table.rows):
            assert set(row) <= set(page.words)
    assert not any("the run stopped there" in words for words in page.words)
    assert page.tags.count("img") == 8
    assert page.tags.index("table") > max(place for place, tag in enumerate(page.tags) if tag == "img"), "charts come first"
    (folded,) = re.findall(r"<details>(.*?)</details>", html, re.DOTALL)
    assert record.prompts[0].split()[0] in folded
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert "url(" not in html
    assert "@import" not in html
    for address in page.addresses:
        svg = base64.b64decode(address.split(",", 1)[1]).decode()
        assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', svg))


def test_text_from_the_record_stays_text(record, write):
    bad = "<img src=x onerror=alert(1)>&amp;"
    record.sources = {**record.sources, "model": {"name": bad, "origin": bad, "stand_in": False}}
    record.environment = {**record.environment, "cpu": bad, "commit": bad}
    shorten(record)
    record.models[bad] = dataclasses.replace(record.models["Baseline"], name=bad)
    html, page = write(record, record)
    assert bad not in html
    assert bad in page.words


@pytest.mark.parametrize(("stages", "charts"), [(0, 0), (1, 4)])
def test_an_aborted_run_is_reported_as_far_as_it_went(record, write, stages, charts):
    keep(record, *("Baseline",)[:stages])
    _, page = write(record)
    assert page.tags.count("img") == charts
    assert "INT8 audit" not in page.headings
    assert ("Summary" in page.headings) == (stages > 0)
    assert any("the run stopped there" in words for words in page.words)


def test_several_runs_stand_beside_each_other_before_each_is_shown(record, write):
    shorten(record)
    _, page = write(record, record)
    wanted = ["The runs beside each other", "1-profile", "What is not the same", "Run A", "Run B"]
    assert [heading for heading in page.headings if heading in wanted] == wanted
    assert any("not interleaved" in words for words in page.words)


def test_a_folder_is_refused(record, tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        write_report([record], tmp_path)
    assert list(tmp_path.iterdir()) == []
