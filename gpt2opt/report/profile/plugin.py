"""A tab of TensorBoard: the page of all traces under its log directory, without any network.

TensorBoard finds it by the entry point `tensorboard_plugins` of this package: `tensorboard --logdir traces` is enough.
"""

import re
from pathlib import Path
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from gpt2opt.measure.trace_file import is_trace
from gpt2opt.report.profile.page import PARTS, page, script_hash
from gpt2opt.report.profile.summary import summarize


class ProfilePlugin(base_plugin.TBPlugin):
    """The page of the traces under the log directory, read when it is opened."""

    plugin_name = "gpt2opt_profile"

    def __init__(self, context: base_plugin.TBContext):
        self.log_dir = Path(context.logdir or ".")

    def get_plugin_apps(self) -> dict[str, Any]:
        return {"/index.js": wrappers.Request.application(self._frame), "/page.html": wrappers.Request.application(self._page)}

    def is_active(self) -> bool:
        return any(map(is_trace, self.log_dir.rglob("*.json*")))

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Profiles", disable_reload=True)

    def profiles(self) -> list[dict[str, Any]]:
        """Return what the page shows of each trace; of one that can't be read, why."""
        return [self._summary(path) for path in sorted(filter(is_trace, self.log_dir.rglob("*.json*")))]

    def _summary(self, path: Path) -> dict[str, Any]:
        inside = path.parent.relative_to(self.log_dir).as_posix()
        alone = sum(map(is_trace, path.parent.glob("*.json*"))) == 1
        name = re.sub(r"(\.pt\.trace)?\.json.*", "", path.name) if inside == "." or not alone else inside
        try:
            return summarize(path, name)
        except (ValueError, OSError) as error:
            return {"name": name, "error": str(error)}

    def _frame(self, request: wrappers.Request) -> wrappers.Response:
        return http_util.Respond(request, (PARTS / "tensorboard.js").read_text(), "application/javascript")

    def _page(self, request: wrappers.Request) -> wrappers.Response:
        return http_util.Respond(request, page(self.profiles()), "text/html", csp_scripts_sha256s=[script_hash()])
