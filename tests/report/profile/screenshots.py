"""Make the pictures of the documents: `python -m tests.report.profile.screenshots [TRACES]`, of a run's traces (default: `traces`)."""

import sys
import tempfile
from pathlib import Path

from selenium.webdriver import ActionChains

from tests.apps.ui.browser import Page, why_no_browser
from tests.report.profile.tensorboards import served

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SIZE = (1360, 900)
THEMES = (("light", ""), ("dark", "-dark"))


def main(traces: Path) -> int:
    if reason := why_no_browser():
        print(f"no pictures: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        page = Page((traces / "profiles.html").resolve().as_uri(), Path(folder, "profile"), SIZE)
        try:
            one_stage(page)
            two_stages(page)
            tensorboard(page, served(traces))
        finally:
            page.close()
    return 0


def one_stage(page: Page) -> None:
    """The calls of stage 1 with the pointer on one of them, its operators and its memory."""
    page.choose("theme", "light")
    page.fit_to_content(SIZE[0])
    point_at(page, "#icicle-first", "aten::addmm")
    page.driver.save_screenshot(str(DOCS / "traces.png"))


def two_stages(page: Page) -> None:
    """The same model in one runtime, FP32 and INT8: what got faster, call by call."""
    page.choose("first", "4-control-fp32")
    page.choose("second", "4-quantize")
    page.fit_to_content(SIZE[0])
    point_at(page, "#icicle-second", "MatMul mlp.c_fc")
    page.driver.save_screenshot(str(DOCS / "traces-compared.png"))


def tensorboard(page: Page, address: str) -> None:
    """The tab of TensorBoard, light and dark."""
    page.driver.set_window_size(*SIZE)
    for theme, suffix in THEMES:
        page.driver.get("about:blank")
        page.driver.get(f"{address}#gpt2opt_profile")
        page.wait(lambda: page.all("iframe[src*=plugin_entry]"))
        page.driver.execute_script("document.body.classList.toggle('dark-mode', arguments[0])", theme == "dark")
        for frame in ("iframe[src*=plugin_entry]", "iframe[src='page.html']"):
            page.wait(lambda frame=frame: page.all(frame))
            page.driver.switch_to.frame(page.find(frame))
        page.wait(lambda: page.driver.execute_script("return document.documentElement.dataset.ready"))
        page.choose("first", "1-profile")
        page.choose("second", "2-prune")
        page.driver.execute_script("document.activeElement.blur()")
        page.driver.switch_to.default_content()
        page.driver.save_screenshot(str(DOCS / f"traces-tensorboard{suffix}.png"))


def point_at(page: Page, icicle: str, name: str) -> None:
    """Put the pointer on the widest bar of a call."""
    page.driver.execute_script("document.activeElement.blur()")
    bars = [bar for bar in page.all(f"{icicle} g") if bar.get_attribute("aria-label").split(",")[0] == name]
    widest = max(bars, key=lambda bar: float(bar.find_element("tag name", "rect").get_attribute("width")))
    ActionChains(page.driver).move_to_element(widest).perform()
    page.wait(lambda: page.find("#hover").is_displayed())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "traces"))
