"""What can't be chosen is refused in one line that names the choices."""

import socket
from pathlib import Path

import pytest

from gpt2opt.apps.ui import choices
from gpt2opt.apps.ui.choices import MESSAGE_BYTES, Choice, decoding_settings
from gpt2opt.cli import main


@pytest.mark.parametrize(
    ("model", "precision", "said"),
    [
        ("gpt3", "fp32", "model 'gpt3' is not known; expected one of gpt2, gpt2-medium, gpt2-large, bundled, or a folder"),
        ("", "fp32", "model '' is not known"),
        ("gpt2", "int9", "precision 'int9' is not known; expected one of fp32, w8a8, w8a8-naive, w8, w4"),
    ],
)
def test_unknown_choices(model, precision, said, capsys):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        Choice(model, precision)
    assert main(["ui", model, "--precision", precision, "--port", "0"]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top_p": 0}, "top_p=0, expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1, expected a number above 0 and at most 1"),
        ({"temperature": 0}, "temperature=0, expected a number above 0"),
        ({"temperature": -1}, "temperature=-1, expected a number above 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5, expected a whole number"),
        ({"temperature": 1e308}, "temperature=1e[+]308, expected a number above 0, from 0.001 to 1000"),
        ({"repetition_penalty": 1e308}, "repetition_penalty=1e[+]308, expected a number from 0.01 to 100"),
    ],
)
def test_settings_outside_their_range(given, said):
    with pytest.raises(ValueError, match=said):
        decoding_settings(given)


def test_settings_show_the_five_others():
    assert decoding_settings({"stop_strings": ["a"], "do_sample": True}).top_logprobs == 6


def test_a_port_in_use_or_outside_the_range(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "bundled", "--port", str(port), "--out", str(tmp_path / "ui")]) == 2
    assert f"port {port}: Address already in use; name another one with --port" in capsys.readouterr().err
    assert main(["ui", "bundled", "--port", "70000", "--out", str(tmp_path / "ui")]) == 2
    assert "port 70000, expected one from 1 to 65535" in capsys.readouterr().err
    assert not (tmp_path / "ui").exists()


@pytest.mark.parametrize("host", ["https://hub.example", "hub.example:8000", "*", "*.example", "", "hub/example", "hub.example\n"])
def test_a_host_is_a_name_alone(host, capsys):
    assert main(["ui", "bundled", "--host", "fine.example", "--host", host]) == 2
    assert f"host {host!r}, expected a name alone, as in hub.example.org" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("gpt2opt.environment.installed", lambda package: None)
    assert main(["ui", "bundled"]) == 2
    assert capsys.readouterr().err == "gpt2opt: the page needs tornado, which is not installed; `pip install 'gpt2opt[ui]'` brings it\n"


def test_the_page_knows_how_long_a_message_may_be():
    """A longer one would be cut off by the server, and the page could not say why."""
    assert MESSAGE_BYTES == 2**20
    assert "const MESSAGE_BYTES = 2 ** 20;" in (Path(choices.__file__).parent / "page" / "stream.js").read_text()
