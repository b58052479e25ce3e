import json
import re
import sys
import zipfile

import pytest

from gpt2opt.apps.submission.pack import MARKER
from gpt2opt.apps.submission.points import OF_THE_RECORD, POINTS
from gpt2opt.cli import main
from tests.apps.submission.test_secrets import KEYS


def last_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_check_says_yes_and_no(project, capsys):
    assert main(["check", str(project.write())]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"private +no key or token +pass +no key", shown)
    answer = json.loads(shown.splitlines()[-1])
    assert answer["passed"] is True
    assert answer["points"][-1]["passed"] is None

    project.say("load", "/home/jane/x")
    assert main(["check", str(project.write())]) == 1
    shown = capsys.readouterr().out
    assert "FAIL" in shown
    assert json.loads(shown.splitlines()[-1])["passed"] is False


def test_check_fixes_first_when_asked(project, capsys):
    project.say("load", f"/home/jane/x {KEYS['Hugging Face token']}")
    assert main(["check", str(project.write()), "--fix"]) == 0
    shown = capsys.readouterr().out
    assert "output of code cell 1: home path /home/jane was taken out" in shown
    assert "to do: Hugging Face token hf_aB… (37 characters): revoke it" in shown
    answer = json.loads(shown.splitlines()[-1])
    assert len(answer["changed"]) == len(answer["to_do"]) == 2
    assert answer["copies"] == [str(project.path.parent / "before-fix" / "project.ipynb")]


def test_pack_writes_the_same_zip_twice(project, capsys):
    (project.traces / ".hidden").write_text("/home/jane")
    out = project.path.parent / "submission.zip"
    assert main(["pack", str(project.write())]) == 0
    answer = last_json(capsys)
    assert answer["zip"] == str(out)
    assert answer["bytes"] == out.stat().st_size
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == list(answer["files"]) == ["project.ipynb", "traces/baseline_trace.json"]
        assert archive.read("project.ipynb") == project.path.read_bytes()
        assert archive.comment == MARKER
    first = out.read_bytes()
    project.path.touch()
    assert main(["pack", str(project.path)]) == 0  # in place of our own
    assert out.read_bytes() == first


def test_pack_refuses_what_check_refuses(project, capsys):
    project.say("load", "/home/jane/x")
    assert main(["pack", str(project.write())]) == 1
    shown = capsys.readouterr().out
    assert "no home path" in shown
    assert "chart of latency" not in shown.rpartition('{"passed"')[0]  # JSON tells all points, the table those that failed
    assert json.loads(shown.splitlines()[-1])["zip"] is None
    assert not (project.path.parent / "submission.zip").exists()


def test_pack_leaves_a_users_file_alone(project, tmp_path, capsys):
    assert main(["pack", str(project.write()), "--out", str(tmp_path / "ours.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "everything.zip", "w") as archive:
        archive.write(tmp_path / "ours.zip", "ours.zip")  # stored as it is, so our comment is among the bytes
    (tmp_path / "notes.zip").write_text("notes")
    for name in ("everything.zip", "notes.zip"):
        before = (tmp_path / name).read_bytes()
        capsys.readouterr()
        assert main(["pack", str(project.path), "--out", str(tmp_path / name)]) == 2
        assert f"{name} is there and is no zip file that gpt2opt wrote" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before


def test_traces_of_another_name_are_taken(project, capsys):
    logs = project.traces.rename(project.path.parent / "tb_logs")
    assert main(["check", str(project.write())]) == 1
    capsys.readouterr()
    out = project.path.parent / "mine.zip"
    assert main(["pack", str(project.path), "--traces", str(logs), "--out", str(out)]) == 0
    assert zipfile.ZipFile(out).namelist() == ["project.ipynb", "tb_logs/baseline_trace.json"]


WRONG = {
    "missing": (["missing.ipynb"], "can't read the notebook missing.ipynb: No such file or directory; name"),
    "a folder": (["traces"], "can't read the notebook traces: Is a directory; name"),
    "not JSON": (["notes.txt"], "can't read the notebook notes.txt: it is not JSON ("),
    "no folder of traces": (["project.ipynb", "--traces", "none"], "there is no folder none"),
    "everything as traces": (["project.ipynb", "--traces", "."], "expected one that holds the traces alone"),
}


@pytest.mark.parametrize("command", ["check", "pack"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_and_exit_code_2(case, command, project, monkeypatch, capsys):
    project.write()
    monkeypatch.chdir(project.path.parent)
    (project.path.parent / "notes.txt").write_text("notes")
    arguments, message = WRONG[case]
    assert main([command, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_on_a_terminal_the_table_is_as_wide_as_that_and_json_comes_only_when_asked(options, project, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["check", str(project.write()), *options]) == 0
    *lines, told = capsys.readouterr().out.splitlines()
    if options:
        assert json.loads(told)["passed"] is True
        told = lines.pop()
    assert max(map(len, lines)) <= 100
    unsure = sum("can't tell" in line for line in lines)
    assert told == f"{len(POINTS) - unsure} of {len(POINTS)} points met, {unsure} can't be told"


def test_the_points_that_are_met_are_counted(project, capsys):
    project.source("train", "EPOCHS = 2", "EPOCHS = 20")
    assert main(["check", str(project.write())]) == 1
    *_, told, _ = capsys.readouterr().out.splitlines()
    assert told == f"{len(POINTS) - len(OF_THE_RECORD) - 1} of {len(POINTS)} points met, {len(OF_THE_RECORD)} can't be told"
