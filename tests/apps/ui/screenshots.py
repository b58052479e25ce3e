"""Draw the pictures of docs/ui.md: `python -m tests.apps.ui.screenshots`. The bundled model writes in them, as it does for anybody."""

import sys
import tempfile
from pathlib import Path

from selenium.webdriver import ActionChains

from tests.apps.ui.browser import Page, served, why_no_browser
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PROMPT = "Returns the shortest path between two nodes of a graph. If the graph has no path"
COMPARED = "The shortest path between two nodes of a graph"
WIDTH, PHONE = 1280, 400


def main() -> int:
    if reason := why_no_browser():
        print(f"no pictures: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, served("bundled", "--out", str(Path(folder, "ui"))) as address:
        page = Page(address, Path(folder, "profile"))
        try:
            write(page)
            compare(page)
        finally:
            page.close()
    return 0


def write(page: Page) -> None:
    """Two texts in INT8, with a token under the pointer; light, dark, and on a phone."""
    page.choose("precision", "w8a8")
    page.write("prompt", PROMPT)
    finish(page)
    finish(page, "again")
    for theme, name, width in (("light", "ui-phone", PHONE), ("dark", "ui-dark", WIDTH), ("light", "ui", WIDTH)):
        page.choose("theme", theme)
        settle(page, width)
        words = [span for span in page.all(".token") if len(span.text.strip()) > 3]
        ActionChains(page.driver).move_to_element(page.find("h1")).move_to_element(words[len(words) // 3]).perform()
        page.wait(lambda: page.find("#hover").is_displayed())
        page.driver.save_screenshot(str(DOCS / f"{name}.png"))


def compare(page: Page) -> None:
    """FP32 and INT8 side by side."""
    page.click("tab-compare")
    page.write("prompt", COMPARED)
    finish(page)
    page.wait(lambda: page.all("#chart rect"))
    ActionChains(page.driver).move_to_element(page.find("h1")).perform()
    settle(page, WIDTH)
    page.driver.save_screenshot(str(DOCS / "ui-side-by-side.png"))


def settle(page: Page, width: int) -> None:
    """Show all of the page, as it looks when nothing is clicked and nothing goes on."""
    page.driver.execute_script("document.activeElement.blur()")
    page.wait(lambda: "0 streams" in page.find("#state").text)
    page.resize(width)
    page.resize(width, page.driver.execute_script("return document.documentElement.scrollHeight"))


def finish(page: Page, how: str = "generate") -> None:
    page.click(how)
    page.wait(page.ended, 300)
    if page.error():
        raise RuntimeError(page.error())


if __name__ == "__main__":
    sys.exit(main())
