"""The commands that draw the pictures of README and docs: each draws all of its own."""

import pytest
from matplotlib import image

from tests.apps.ui import screenshots as of_the_page
from tests.apps.ui.browser import why_no_browser
from tests.conftest import ROOT
from tests.report.profile import screenshots as of_traces

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.slow,
    pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser())),
]


@pytest.mark.parametrize(
    ("module", "arguments", "named"),
    [(of_traces, [ROOT / "traces"], "traces*.png"), (of_the_page, [], "ui*.png")],
    ids=["traces", "page"],
)
def test_a_command_draws_every_picture_of_its_page(module, arguments, named, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DOCS", tmp_path)
    assert module.main(*arguments) == 0
    committed = {path.name for path in (ROOT / "docs").glob(named)}
    assert committed
    assert {path.name for path in tmp_path.glob("*.png")} == committed
    for path in tmp_path.glob("*.png"):
        assert image.imread(path)[:, :, :3].std() > 0.01  # not one colour
