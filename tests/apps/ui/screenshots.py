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
SIZE = (1360, 860)


def main() -> int:
    if reason := why_no_browser():
        print(f"no pictures: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, served("bundled", "--out", str(Path(folder, "ui"))) as address:
        page = Page(address, Path(folder, "profile"), SIZE)
        try:
            write(page)
            compare(page)
        finally:
            page.close()
    return 0


def write(page: Page) -> None:
    """One text in INT8, with a token under the pointer; light and dark."""
    page.choose("precision", "w8a8")
    page.write("prompt", PROMPT)
    page.write("max_new_tokens", "60")
    page.write("temperature", "0.8")
    finish(page)
    for theme, name in (("dark", "ui-dark"), ("light", "ui")):
        page.choose("theme", theme)
        settle(page)
        words = [span for span in page.all(".token") if len(span.text.strip()) > 3]
        ActionChains(page.driver).move_to_element(words[len(words) // 3]).perform()
        page.wait(lambda: page.find("#hover").is_displayed())
        page.driver.save_screenshot(str(DOCS / f"{name}.png"))


def compare(page: Page) -> None:
    """FP32 and INT8 side by side."""
    page.click("tab-compare")
    page.write("prompt", COMPARED)
    page.click("defaults")
    page.write("max_new_tokens", "60")
    finish(page)
    page.wait(lambda: page.all("#chart rect"))
    ActionChains(page.driver).move_to_element(page.find("h1")).perform()
    settle(page)
    page.driver.save_screenshot(str(DOCS / "ui-side-by-side.png"))


def settle(page: Page) -> None:
    """Show all of the page, as it looks when nothing is clicked and nothing goes on."""
    page.driver.execute_script("document.activeElement.blur()")
    page.wait(lambda: "0 streams" in page.find("#state").text)
    page.fit_to_content(SIZE[0])


def finish(page: Page) -> None:
    page.click("generate")
    page.wait(page.ended, 300)
    if page.error():
        raise RuntimeError(page.error())


if __name__ == "__main__":
    sys.exit(main())
