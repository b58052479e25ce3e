"""JupyterLab and Notebook 7 in a headless Chromium: a notebook opened, run, interrupted and gone on with, as a person does it."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver

from tests.apps.ui.browser import chromium

EVERY_CELL_IN_THE_PAGE = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
"""JupyterLab's own default leaves cells out of the page that are not in view."""
START_S = 60
APPLICATIONS = {"jupyterlab": ("LabApp", "lab/tree"), "notebook": ("JupyterNotebookApp", "notebooks")}
"""What each module calls its settings, and where it opens a notebook."""


@contextmanager
def served(folder: Path, settings: Path, module: str = "jupyterlab") -> Iterator[str]:
    """Run an application on a free port, with `folder` as its root; yield where it opens notebooks. What it keeps goes into `settings`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(EVERY_CELL_IN_THE_PAGE))
    application, place = APPLICATIONS[module]
    options = {
        "ServerApp.root_dir": folder, "ServerApp.port": port, "ServerApp.open_browser": False, "ServerApp.allow_root": True,
        "IdentityProvider.token": "", f"{application}.open_browser": False, f"{application}.expose_app_in_browser": True,
        f"{application}.app_settings_dir": settings, f"{application}.user_settings_dir": settings / "user",
        f"{application}.workspaces_dir": settings / "workspaces", "LabApp.news_url": "",
    }  # fmt: skip
    command = [sys.executable, "-m", module, *(f"--{name}={value}" for name, value in options.items())]
    with (settings / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            _wait_for(address, process, settings / "log")
            yield f"{address}/{place}"
        finally:
            process.terminate()


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(START_S * 5):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"it did not start: {log.read_text()[-2000:]}")


class Notebook:
    """An open notebook. Cells are counted as in the file."""

    def __init__(self, address: str, profile: Path):
        self.driver: webdriver.Chrome = chromium(profile)
        self.driver.get(f"{address}?reset")
        self.wait(lambda: self._script("return window.jupyterapp && window.jupyterapp.shell.currentWidget?.context?.isReady"), START_S)
        self.wait(lambda: self._notebook("sessionContext.session?.kernel?.status === 'idle'"), START_S)

    def close(self) -> None:
        self.driver.quit()

    def do(self, command: str) -> None:
        """Start one of JupyterLab's commands, as its menus do: `notebook:run-all-cells`."""
        self._script("window.jupyterapp.commands.execute(arguments[0])", command)

    def select(self, cell: int) -> None:
        self._script("window.jupyterapp.shell.currentWidget.content.activeCellIndex = arguments[0]", cell)

    def running(self) -> bool:
        return self._notebook("sessionContext.session.kernel.status === 'busy'") or "[*]:" in self.prompts()

    def prompts(self) -> list[str]:
        """Return what stands before each code cell: `[3]:`, `[*]:` while it runs or waits."""
        return self._script(
            "return [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(prompt => prompt.textContent.trim())"
        )

    def text_below(self, cell: int) -> str:
        return self._script("return document.querySelectorAll('.jp-Cell')[arguments[0]].querySelector('.jp-OutputArea')?.innerText", cell)

    def charts(self) -> list[int]:
        """Return the width in pixels of each picture that is shown. JupyterLab shows no alternative text."""
        return self._script("return [...document.querySelectorAll('.jp-OutputArea img')].map(image => image.naturalWidth)")

    def errors(self) -> list[str]:
        return self._script(
            'return [...document.querySelectorAll(\'[data-mime-type="application/vnd.jupyter.error"], '
            '[data-mime-type="application/vnd.jupyter.stderr"]\')].map(output => output.innerText)'
        )

    def wait(self, condition, seconds: float):
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s; cells: {self.prompts()}, errors: {self.errors()}")
            time.sleep(0.3)
        return found

    def _notebook(self, expression: str):
        return self._script(f"return window.jupyterapp.shell.currentWidget.{expression}")

    def _script(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)
