"""A headless Chromium at the page, and a server of the page in a process of its own."""

import json
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP *.example 127.0.0.1", "--ignore-certificate-errors",
)  # fmt: skip
WAIT_S = 60


def why_no_browser() -> str | None:
    """Return why the page can't be tested in a browser here; None if it can."""
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"no {' and no '.join(missing)} here; tests/browser/install.sh brings it" if missing else None


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Run `gpt2opt ui` on a free port; yield its address."""
    command = [sys.executable, "-m", "gpt2opt", "ui", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def chromium(profile: Path, size: tuple[int, int] = (1360, 900)) -> webdriver.Chrome:
    """Start a browser that keeps everything in `profile`, downloads too."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(profile / "downloads")})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


class Page:
    """The page in a browser, by what a person sees and does there."""

    def __init__(self, address: str, profile: Path, size: tuple[int, int] = (1360, 900)):
        self.driver, self.address, self.downloads = chromium(profile, size), address, profile / "downloads"
        self.open()

    def open(self) -> None:
        self.driver.get(self.address)
        self.wait(lambda: self.driver.execute_script("return document.documentElement.dataset.ready"))

    def close(self) -> None:
        self.driver.quit()

    def wait(self, condition, seconds: float = WAIT_S):
        return WebDriverWait(self.driver, seconds, 0.02).until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, name: str) -> None:
        self.find(f"#{name}").click()

    def write(self, name: str, text: str) -> None:
        field = self.find(f"#{name}")
        field.clear()
        field.send_keys(text)

    def choose(self, name: str, value: str) -> None:
        """Choose an entry of a list, or one of the buttons of a toggle."""
        if self.find(f"#{name}").tag_name == "select":
            Select(self.find(f"#{name}")).select_by_value(value)
        else:
            self.find(f"#{name} label:has([value='{value}'])").click()

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page a width that a window can't have, such as a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.wait(lambda: self.driver.execute_script("return innerWidth") == width)

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return self.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")

    def tap(self, element: WebElement) -> None:
        """Touch an element with a finger."""
        actions = ActionBuilder(self.driver, mouse=PointerInput("touch", "finger"))
        actions.pointer_action.move_to(element).pointer_down().pointer_up()
        actions.perform()

    def press(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focus(self) -> str:
        """Return the id of what has the focus."""
        return self.driver.execute_script("return document.activeElement.id")

    def tab_to(self, name: str) -> None:
        """Press Tab until something has the focus, as one without a mouse does."""
        for _ in range(60):
            if self.focus() == name:
                return
            self.press(Keys.TAB)
        raise AssertionError(f"Tab does not lead to {name}")

    def texts(self) -> list[dict]:
        """Return the texts that are stored in the browser, the newest last."""
        script = "return Object.keys(localStorage).filter(k => k.startsWith('gpt2opt.text.')).map(k => JSON.parse(localStorage.getItem(k)))"
        return sorted(self.driver.execute_script(script), key=lambda text: text["at"])

    def open_settings(self) -> None:
        self.driver.execute_script("document.getElementById('fine').open = true")

    def value(self, name: str) -> str:
        return self.find(f"#{name}").get_property("value")

    def count(self, side: int = 0) -> int:
        """Return how many tokens are shown; several that make one character share a place."""
        script = "return [...arguments[0].querySelectorAll('.token')].flatMap(t => t.dataset.tokens.split(' ')).length"
        return self.driver.execute_script(script, self.all(".text")[side])

    def text(self, side: int = 0) -> str:
        script = "return [...arguments[0].querySelectorAll('.token')].map(t => t.textContent).join('')"
        return self.driver.execute_script(script, self.all(".text")[side])

    def ended(self) -> bool:
        return not self.find("#stop").is_enabled()

    def wait_for_the_end(self) -> None:
        self.wait(self.ended)

    def error(self) -> str:
        return self.find("#error").text

    def complaints(self) -> list[str]:
        """Return what the browser's console said."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def hosts(self) -> set[str]:
        """Return the hosts that were asked for anything since the last call; none for files and for what lies in the page itself."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]
        return {host for url in asked if (host := urllib.parse.urlsplit(url).hostname)}

    def fit_to_content(self, width: int, extra: int = 0) -> None:
        """Make the window as high as the page, for a picture of all of it."""
        self.driver.set_window_size(width, 700)
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        outer = self.driver.execute_script("return window.outerHeight - window.innerHeight")
        self.driver.set_window_size(width, height + outer + extra)
