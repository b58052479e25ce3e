"""The tab of TensorBoard, without a browser; test_browser.py opens it in one."""

import json
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from tensorboard.plugins import base_plugin
from werkzeug.test import Client

from experiments.docs import ROOT
from gpt2opt.report.profile.page import page
from gpt2opt.report.profile.plugin import ProfilePlugin
from tests.report.conftest import make_record
from tests.report.profile.conftest import cpu_events, write

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")


def plugin_of(folder) -> ProfilePlugin:
    return ProfilePlugin(SimpleNamespace(logdir=str(folder)))


def test_the_entry_point_of_the_package_is_the_plugin():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["tensorboard_plugins"]
    ((name, value),) = declared.items()
    plugin = EntryPoint(name, value, "tensorboard_plugins").load()
    assert plugin is ProfilePlugin
    assert issubclass(plugin, base_plugin.TBPlugin)
    assert plugin.plugin_name == name


def test_the_tab_is_the_page_of_all_traces_under_the_log_directory(traces):
    plugin = plugin_of(traces)
    assert plugin.is_active()
    reply = Client(plugin.get_plugin_apps()["/page.html"]).get("/")
    assert reply.text == page(plugin.profiles())
    assert [profile["name"] for profile in plugin.profiles()] == ["1-profile", "2-prune", "4-quantize"]
    assert "script-src 'self' 'unsafe-eval' 'sha256-" in reply.headers["Content-Security-Policy"]
    assert "page.html" in Client(plugin.get_plugin_apps()[plugin.frontend_metadata().es_module_path]).get("/").text


def test_without_a_trace_the_tab_is_not_active(tmp_path):
    assert not plugin_of(tmp_path).is_active()
    assert plugin_of(tmp_path).profiles() == []


def test_a_trace_and_a_record_that_come_later_are_seen(tmp_path):
    write(tmp_path / "1-profile", cpu_events())
    plugin = plugin_of(tmp_path)
    assert [profile["name"] for profile in plugin.profiles()] == ["1-profile"]
    write(tmp_path / "2-prune", cpu_events())
    assert [profile["name"] for profile in plugin.profiles()] == ["1-profile", "2-prune"]
    assert plugin.profiles()[1]["ratios"] == {}
    make_record().write(tmp_path / "run.json")
    assert "1-profile" in plugin.profiles()[1]["ratios"]


def test_a_trace_of_any_name_is_shown_and_other_json_is_not(tmp_path):
    write(tmp_path, cpu_events()).rename(tmp_path / "of a worker.json.gz")
    (tmp_path / "run.json").write_text("{}")
    assert plugin_of(tmp_path).is_active()
    assert [profile["name"] for profile in plugin_of(tmp_path).profiles()] == ["of a worker"]


def test_a_broken_trace_is_told_of_and_the_others_are_shown(tmp_path):
    write(tmp_path / "1-profile", cpu_events())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "worker.pt.trace.json.gz").write_bytes(b"\x1f\x8b cut short")
    (tmp_path / "bad" / "other.pt.trace.json").write_text("{")
    good, *bad = plugin_of(tmp_path).profiles()
    assert good["operators"]
    assert [profile["name"] for profile in bad] == ["other", "worker"]
    assert all("is no trace in Chrome's format" in profile["error"] for profile in bad)


def test_traces_that_torch_did_not_escape_and_those_of_other_forms_are_shown(tmp_path):
    listed = json.dumps([None, *cpu_events(), None])
    names = {"a list": "aten::addmm", "quotes": 'prompt "Hello"', "Windows": r"torch\cuda"}
    for place, name in names.items():
        (tmp_path / f"{place}.pt.trace.json").write_text(listed.replace("aten::addmm", name))
    assert {profile["name"]: profile["operators"][0]["name"] for profile in plugin_of(tmp_path).profiles()} == names
