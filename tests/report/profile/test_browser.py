"""The pages in a headless Chromium: a person who hovers, clicks, sorts, compares, and opens TensorBoard."""

import re
import shutil

import pytest
from selenium.webdriver import ActionChains, Keys

from gpt2opt.report.profile.page import write_pages
from tests.report.conftest import make_record
from tests.report.profile.conftest import cpu_events, write
from tests.report.profile.tensorboards import served

browser = pytest.importorskip("tests.apps.ui.browser", reason="selenium is not installed; the extra `test` brings it", exc_type=ImportError)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.why_no_browser() is not None, reason=str(browser.why_no_browser())),
]


@pytest.fixture(scope="module")
def written(traces, tmp_path_factory):
    """The traces with their pages."""
    folder = tmp_path_factory.mktemp("pages") / "traces"
    shutil.copytree(traces, folder)
    make_record().write(folder / "run.json")
    write_pages(folder)
    return folder


@pytest.fixture(scope="module")
def opened(written, tmp_path_factory):
    comparing = written / "profiles.html"
    page = browser.Page(comparing.as_uri(), tmp_path_factory.mktemp("browser"))
    yield page
    page.close()


@pytest.fixture
def page(opened):
    """The comparing page as at the first visit."""
    opened.driver.get("about:blank")
    opened.hosts()
    opened.complaints()
    opened.open()
    yield opened
    assert not opened.complaints()
    assert not opened.hosts()


def bar(page, name: str, place: str = "first"):
    """Return the bar of a call by the beginning of its name."""
    return next(each for each in page.all(f"#icicle-{place} g") if each.get_attribute("aria-label").startswith(name))


def width(element) -> float:
    return float(element.find_element("tag name", "rect").get_attribute("width"))


def column(page, number: int) -> list[str]:
    return [cell.text for cell in page.all(f"#operators tbody td:nth-child({number})")]


def hover(page, element) -> str:
    ActionChains(page.driver).move_to_element(element).perform()
    page.wait(lambda: page.find("#hover").is_displayed())
    return page.find("#hover").text


def test_the_page_of_one_stage_shows_calls_operators_and_memory(page, written):
    page.driver.get((written / "1-profile" / "profile.html").as_uri())
    page.wait(lambda: page.driver.execute_script("return document.documentElement.dataset.ready"))
    assert not page.find("#first").is_displayed()
    assert "100 µs of CPU time recorded, in torch" in page.find("#icicle-first-title").text
    assert width(bar(page, "prefill")) / width(bar(page, "whole")) == pytest.approx(0.6)
    assert "addmm" in bar(page, "aten::addmm").text
    assert page.find("#memory path").get_attribute("d").count("V") == 4
    assert "1-profile: at most 1.5 kB" in page.find("#memory").text


def test_hover_tells_own_and_total_time_and_calls(page):
    told = hover(page, bar(page, "aten::addmm"))
    assert re.search(r"aten::addmm\ntotal\n46 µs, 46\.0% of the recording\nown\n42 µs, 42\.0% of the recording\ncalls\n2", told)
    told = hover(page, page.find("#memory svg"))
    assert re.search(r"3\d(\.\d)? µs\n.*1-profile\n1\.5 kB", told, re.DOTALL)  # in the middle, between 10 and 50 µs


def test_a_click_zooms_in_and_out(page):
    whole = width(bar(page, "whole"))
    bar(page, "Conv1D").click()
    assert width(bar(page, "Conv1D")) == pytest.approx(whole)
    assert "above" in bar(page, "whole").get_attribute("class")
    bar(page, "whole").click()
    assert width(bar(page, "Conv1D")) == pytest.approx(whole / 2)


def test_the_keyboard_goes_wherever_the_pointer_goes(page):
    bar(page, "whole").send_keys(Keys.ARROW_DOWN)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    focused = page.driver.switch_to.active_element
    assert focused.get_attribute("aria-label").startswith("decode")
    assert page.find("#hover").text.startswith("decode")
    whole = width(bar(page, "whole"))
    focused.send_keys(Keys.ENTER)
    assert width(bar(page, "decode")) == pytest.approx(whole)
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert width(bar(page, "decode")) == pytest.approx(0.3 * whole)


def test_the_share_of_an_operator_is_that_of_all_own_time(page):
    assert [each.text for each in page.all("#operators th")][2] == "share of all own time"
    assert dict(zip(column(page, 1), column(page, 3), strict=True)) == {
        "aten::addmm": "75.0%", "aten::add": "17.9%", "aten::copy_": "3.6%", "cudaLaunchKernel": "3.6%",
    }  # fmt: skip
    assert "The share is that of the own time of all operators" in page.find("main").text
    page.choose("second", "2-prune")
    assert "The share is" not in page.find("main").text


def test_above_two_profiles_stands_what_was_measured_in_turns_or_that_nothing_was(page):
    assert not page.find("#ratio").is_displayed()
    page.choose("second", "2-prune")
    assert page.find("#ratio").text.startswith("Timed in turns and without a profiler, Pruned ÷ Baseline (median of the rounds")
    page.choose("first", "2-prune")
    page.choose("second", "1-profile")
    assert "Baseline ÷ Pruned" in page.find("#ratio").text
    page.choose("second", "4-quantize")
    assert page.find("#ratio").text == "These two were not timed in turns: a difference between two recordings may be the machine's."


def test_a_click_on_a_heading_sorts(page):
    assert column(page, 1)[0] == "aten::addmm"
    page.all("#operators th button")[0].click()
    assert column(page, 1) == sorted(column(page, 1))
    page.all("#operators th button")[4].click()
    assert column(page, 5) == sorted(column(page, 5), key=int, reverse=True)
    page.all("#operators th button")[4].click()
    assert column(page, 5) == sorted(column(page, 5), key=int)


def test_time_of_the_gpu_is_a_choice_where_there_is_one(page):
    assert "gemm_kernel" not in column(page, 1)
    page.all("[name=clock]")[1].click()
    assert column(page, 1)[0] == "gemm_kernel"
    assert "2" in column(page, 5)[0]
    assert width(bar(page, "gemm_kernel")) == pytest.approx(width(bar(page, "aten::addmm")))
    assert "1-profile, GPU 0: at most 4.1 kB" in page.find("#memory").text
    page.choose("first", "2-prune")
    assert not page.find("#clock-field").is_displayed()
    assert "70 µs of CPU" in page.find("#icicle-first-title").text


def test_two_stages_stand_on_one_scale_with_the_difference_marked(page):
    page.choose("second", "2-prune")
    assert width(bar(page, "whole", "second")) / width(bar(page, "whole")) == pytest.approx(0.7)
    assert bar(page, "whole", "second").get_attribute("aria-label") == "whole recording, ▼−30%"
    assert "−30%" in hover(page, bar(page, "aten::addmm", "second"))
    rows = dict(zip(column(page, 1), zip(column(page, 5), column(page, 6), strict=True), strict=True))
    assert rows["aten::addmm"] == ("▼ −30%", "−0.013")
    assert rows["cudaLaunchKernel"] == ("▼ gone", "−0.002")
    assert len(page.all("#memory path[fill=none]")) == 2
    bar(page, "prefill", "second").click()
    assert width(bar(page, "prefill", "second")) / width(bar(page, "prefill")) == pytest.approx(0.7)
    assert page.driver.current_url.endswith("#1-profile&2-prune")


def test_beside_a_model_stands_what_was_recorded_of_its_reference_in_turns_with_it(page, written, tmp_path):
    traces = tmp_path / "traces"
    shutil.copytree(written, traces)
    write(traces / "2-control-baseline", cpu_events(0.8))
    write_pages(traces)
    page.driver.get((traces / "profiles.html").as_uri())
    page.wait(lambda: page.driver.execute_script("return document.documentElement.dataset.ready"))
    assert [option.text for option in page.all("#first option")] == ["1-profile: Baseline", "2-prune: Pruned", "4-quantize: INT8"]
    assert "100 µs of CPU time recorded, in torch" in page.find("#icicle-first-title").text
    for first, second, title, change in (
        ("1-profile", "2-prune", "2-control-baseline: Baseline80 µs of CPU time recorded in turns with the other, in torch", "▼−13%"),
        ("2-prune", "1-profile", "2-prune: Pruned70 µs of CPU time recorded in turns with the other, in torch", "▲+14%"),
    ):
        page.choose("second", "")
        page.choose("first", first)
        page.choose("second", second)
        assert page.find("#icicle-first-title").text == title
        assert bar(page, "whole", "second").get_attribute("aria-label") == f"whole recording, {change}"
        assert page.find("#ratio").text.startswith("Timed in turns")
        assert page.driver.current_url.endswith(f"#{first}&{second}")
    page.choose("second", "4-quantize")
    assert "in turns with" not in page.find("#icicle-first-title").text


def test_another_runtime_is_pointed_out(page):
    page.choose("second", "4-quantize")
    assert "4-quantize in OpenVINO 2026.4.1: their operators have other names" in page.find("#notice").text
    assert "brgemm_I8 × 1" in hover(page, bar(page, "FullyConnected", "second"))
    assert "4-quantize has no allocations in its trace" in page.find("#memory").text


def test_the_tab_of_tensorboard_is_that_page_and_follows_its_theme(opened, traces):
    opened.driver.get(f"{served(traces)}#gpt2opt_profile")
    opened.hosts()
    driver = opened.driver
    driver.refresh()
    for frame in ("iframe[src*=plugin_entry]", "iframe[src='page.html']"):
        opened.wait(lambda frame=frame: opened.all(frame))
        driver.switch_to.frame(opened.find(frame))
    opened.wait(lambda: driver.execute_script("return document.documentElement.dataset.ready"))
    opened.choose("second", "2-prune")
    assert bar(opened, "whole", "second").get_attribute("aria-label") == "whole recording, ▼−30%"
    assert driver.execute_script("return document.documentElement.dataset.theme") == "light"
    driver.execute_script("top.document.body.classList.add('dark-mode')")
    opened.wait(lambda: driver.execute_script("return document.documentElement.dataset.theme") == "dark")
    driver.switch_to.default_content()
    assert opened.hosts() == {"localhost"}


def test_a_frame_that_may_run_no_script_as_jupyterlab_opens_one_shows_a_table_and_a_hint(written, tmp_path):
    frame = written / "frame.html"
    frame.write_text('<iframe sandbox src="1-profile/profile.html" width="900" height="700"></iframe>')
    driver = browser.chromium(tmp_path / "browser")
    driver.get(frame.as_uri())
    driver.switch_to.frame(0)
    shown, drawn = driver.find_element("tag name", "body").text, driver.find_element("tag name", "main").is_displayed()
    driver.quit()
    assert "Trust HTML" in shown
    assert "aten::addmm" in shown
    assert not drawn
