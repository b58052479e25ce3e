import gzip
import json

import pytest
from nbformat.v4 import new_output

from gpt2opt.apps.submission.evidence import read_submission
from gpt2opt.apps.submission.fix import COPIES, fix_submission
from gpt2opt.apps.submission.points import check_points
from gpt2opt.report.profile.page import hash_traces
from gpt2opt.run.record import read_record
from tests.apps.submission.conftest import TRACE
from tests.apps.submission.test_secrets import HOME_OF_ROOT, KEYS
from tests.report.conftest import make_record

TOKEN = KEYS["Hugging Face token"]


@pytest.fixture
def leaky(project):
    """Home paths, a key and time stamps in every place from which they may be taken."""
    project.say("load", f"token {TOKEN} saved to /home/jane/.cache\n")
    html = {
        "text/html": "<p>C:\\Users\\Jane Doe\\x</p><img src='data:image/png;base64,iVBORw0KGgo='>",
        "application/json": {"at": [f"{HOME_OF_ROOT}/x"]},
    }
    project.cells["measure"].outputs.append(new_output("display_data", html))
    project.cells["load"].metadata = {
        "execution": {"iopub.status.busy": "2026-01-01"},
        "executionInfo": {"user": "Jane"},
        "tags": ["/home/jane"],
    }
    project.metadata = {"papermill": {"input_path": "/home/jane/project.ipynb"}}
    trace = {"traceEvents": [*TRACE["traceEvents"], {"name": "/home/jürgen/x.py(1): f"}, {"name": "C:\\Users\\Jane\\x.py(1): f"}]}
    (project.traces / "baseline.trace.json.gz").write_bytes(gzip.compress(json.dumps(trace, ensure_ascii=False).encode()))
    return project


def test_after_fix_every_point_is_met(leaky):
    assert set(leaky.failed()) == {"no key or token", "no home path"}
    fixed = fix_submission(read_submission(leaky.path))
    submission = read_submission(leaky.path)
    assert [answer for answer in check_points(submission) if answer.passed is False] == []

    load, measure = submission.cells[0], submission.cells[1]
    assert load.outputs[-1].text == "token [Hugging Face token removed] saved to ~/.cache\n"
    assert load.metadata == {"tags": ["~"]}
    assert measure.outputs[-1].data["text/html"] == "<p>~\\x</p><img src='data:image/png;base64,iVBORw0KGgo='>"
    assert measure.outputs[-1].data["application/json"] == {"at": ["~/x"]}
    assert "papermill" not in submission.notebook.metadata
    events = json.loads(gzip.decompress((leaky.traces / "baseline.trace.json.gz").read_bytes()))["traceEvents"]
    assert [event["name"] for event in events if "name" in event] == ["aten::mm", "~/x.py(1): f", "~\\x.py(1): f"]

    assert "output of code cell 1: Hugging Face token hf_aB… (37 characters) was taken out" in fixed.changed
    assert any("revoke it at huggingface.co/settings/tokens" in todo for todo in fixed.todo)
    assert any(f"delete {leaky.path.parent / COPIES}" in todo for todo in fixed.todo)
    assert TOKEN not in str(fixed)


def test_traces_stay_those_of_the_record(leaky):
    record = make_record()
    record.traces = hash_traces(leaky.traces)
    record.write(leaky.traces / "run.json")
    fix_submission(read_submission(leaky.write()))
    after = read_record(leaky.traces / "run.json").traces
    assert after == hash_traces(leaky.traces) != record.traces
    leaky.trace.write_text("of another run")
    leaky.say("load", "/home/jane once more")
    fix_submission(read_submission(leaky.write()))
    assert read_record(leaky.traces / "run.json").traces == after


def test_the_files_are_kept_as_they_were_and_never_twice(leaky):
    before = {path: path.read_bytes() for path in (leaky.write(), leaky.traces / "baseline.trace.json.gz")}
    untouched = leaky.trace.read_bytes()
    copies = fix_submission(read_submission(leaky.path)).copies
    assert [copy.read_bytes() for copy in copies] == list(before.values())
    assert [copy.relative_to(leaky.path.parent / COPIES).as_posix() for copy in copies] == [
        "project.ipynb",
        "traces/baseline.trace.json.gz",
    ]
    assert leaky.trace.read_bytes() == untouched

    assert fix_submission(read_submission(leaky.path)).copies == []  # nothing is left to change
    leaky.say("load", "/home/jane again")
    again = leaky.write().read_bytes()
    (copy,) = fix_submission(read_submission(leaky.path)).copies
    assert copy.name == "project.ipynb.2"
    assert copy.read_bytes() == again
    assert (leaky.path.parent / COPIES / "project.ipynb").read_bytes() == before[leaky.path]


def test_what_a_user_wrote_is_named_and_not_changed(project):
    project.cells["load"].source += f"\nlogin('{TOKEN}')\nopen('/home/jane/x')"
    before = project.write().read_bytes()
    fixed = fix_submission(read_submission(project.path))
    assert project.path.read_bytes() == before
    assert fixed.changed == fixed.copies == []
    assert any(todo.startswith("code cell 1: Hugging Face token hf_aB… (37 characters) is in the source") for todo in fixed.todo)
    assert any(todo.startswith("code cell 1: home path /home/jane is in the source") for todo in fixed.todo)
    assert not (project.path.parent / COPIES).exists()


def test_what_a_user_wrote_is_named_and_not_changed_where_the_outputs_are(project):
    project.cells["load"].source += f"\nlogin('{TOKEN}')\nopen('/home/jane/x')"
    project.say("load", "/home/jane/x")
    source = project.cells["load"].source
    project.write()
    fix_submission(read_submission(project.path))
    cell = read_submission(project.path).cells[0]
    assert cell.source == source
    assert cell.outputs[-1].text == "~/x"


def test_nothing_is_written_into_a_folder_of_the_users_own(leaky):
    (leaky.path.parent / COPIES).mkdir()
    (leaky.path.parent / COPIES / "mine.txt").write_text("mine")
    before = leaky.write().read_bytes()
    with pytest.raises(ValueError, match="was not written by gpt2opt"):
        fix_submission(read_submission(leaky.path))
    assert leaky.path.read_bytes() == before


def test_a_log_of_tensorboard_with_a_path_in_it_is_deleted(project):
    from torch.utils.tensorboard import SummaryWriter

    for name, folder in (("train", "/home/jürgen/out"), ("clean", "out")):
        with SummaryWriter(str(project.traces / name)) as writer:
            writer.add_text("args", f'"output_dir": "{folder}"')
            writer.add_scalar("loss", 2.5, 1)
    assert list(project.failed()) == ["no home path"]
    ((log,), (clean,)) = (list((project.traces / name).iterdir()) for name in ("train", "clean"))
    before = log.read_bytes(), clean.read_bytes()
    fixed = fix_submission(read_submission(project.path))
    assert project.failed() == {}
    assert not log.exists()
    assert [copy.read_bytes() for copy in fixed.copies] == [before[0]]
    assert clean.read_bytes() == before[1]
    assert fixed.changed == [f"traces/train/{log.name}: home path /home/jürgen; the log of TensorBoard that holds it was deleted"]


def test_a_trace_that_is_cut_short_is_refused(project):
    whole = gzip.compress(json.dumps(TRACE).encode())
    (project.traces / "cut.trace.json.gz").write_bytes(whole[:-9])
    assert "is cut short or damaged" in project.failed()["no home path"]
    with pytest.raises(OSError, match=r"traces/cut\.trace\.json\.gz is cut short or damaged"):
        fix_submission(read_submission(project.write()))
