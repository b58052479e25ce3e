"""One digit of an output or one bit of a picture is flipped: check finds it, or nothing is compared there, and that is said here."""

import dataclasses
import random
import string

import pytest
from nbformat.v4 import new_code_cell, new_output

from gpt2opt import conclude_finetune, conclude_profile, environment_table, samples_table, speed_table, stage_table, stand_in_notice
from gpt2opt.apps.submission.evidence import NotMetError, read_submission
from gpt2opt.apps.submission.figures import OBJECT, figures_of_the_record
from gpt2opt.apps.submission.points import outputs_present
from gpt2opt.report.tables import summary_table
from tests.apps.submission.conftest import CHARTS, PICTURE
from tests.report.conftest import change, make_record

FLIPS = 300
OWN, BESIDE = "what a cell prints by code of its own", "the text beside a picture"
NOT_COMPARED = {OWN, BESIDE}


def whole_record():
    """A record with what the conclusions of stages 1 and 3 need."""
    record = make_record()
    change(record, "Baseline", facts=record.models["Baseline"].facts | {"known_perplexities": None})
    record.models["Fine-tuned, unpruned"] = dataclasses.replace(
        record.models["Fine-tuned"], name="Fine-tuned, unpruned", latency=None, memory=None
    )
    return record


def result(table):
    return new_output("execute_result", {"text/markdown": table.markdown(), "text/plain": repr(table)})


def printed(*values):
    return new_output("stream", text="".join(f"{value}\n" for value in values))


@pytest.fixture
def executed(project):
    """A notebook that shows tables and conclusions of its record in all the ways there are."""
    record = whole_record()
    record.write(project.traces / "run.json")
    summary = {"text/markdown": summary_table(record).markdown(), "text/plain": OBJECT}
    shown = {
        "print(gpt2opt.stand_in_notice(run.record))\ngpt2opt.environment_table(run.record)": [
            printed(stand_in_notice(record)),
            result(environment_table(record)),
        ],
        "print(gpt2opt.conclude_profile(run.record))": [printed(conclude_profile(record))],
        'gpt2opt.stage_table(run.record, "2-prune")': [result(stage_table(record, "2-prune"))],
        "gpt2opt.conclude_finetune(run.record)": [
            new_output("execute_result", {"text/plain": repr(conclude_finetune(record))}),
        ],
        "print(gpt2opt.speed_table(run.record))": [printed(speed_table(record))],
        "from IPython.display import Markdown, display\ndisplay(Markdown(gpt2opt.summary_table(run.record).markdown()))": [
            new_output("display_data", summary)
        ],
        "import gpt2opt as g\ng.samples_table(run.record, most=1)": [result(samples_table(record, most=1))],
    }  # fmt: skip
    for source, outputs in shown.items():
        project.cells[source] = new_code_cell(source, execution_count=len(project.cells) + 1, outputs=outputs)
    return read_submission(project.write()), len(shown)


def found(submission) -> bool:
    try:
        figures_of_the_record(submission), outputs_present(submission)
    except NotMetError:
        return True
    return False


def places(cells, reports):
    """Yield (mapping, key, whether nothing there is compared) of each text among the outputs."""
    for place, cell in enumerate(cells):
        own = place < len(cells) - reports
        for output in cell.outputs:
            if "text" in output:
                yield output, "text", OWN if own else None
            for kind in output.get("data", {}):
                yield output.data, kind, BESIDE if own and kind == "text/plain" else None


def flipped(text: str, kind: str, draw: random.Random) -> str | None:
    """Return a text with one of its digits changed, or a picture with one bit flipped; None if there is no digit, or no text any more."""
    if kind != "image/png":
        digits = [place for place, character in enumerate(text) if character in string.digits]
        place = draw.choice(digits) if digits else 0
        return f"{text[:place]}{(int(text[place]) + draw.randint(1, 9)) % 10}{text[place + 1 :]}" if digits else None
    data = bytearray(text.encode())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def test_a_flipped_digit_in_any_output_made_of_the_record_or_a_bit_in_a_picture_is_found(executed):
    submission, reports = executed
    assert not found(submission)
    draw, counts = random.Random(0), {None: 0, OWN: 0, BESIDE: 0}
    every = list(places(submission.cells, reports))
    for _ in range(FLIPS):
        (mapping, key, reason) = draw.choice(every)
        before = mapping[key]
        if (after := flipped(before, key, draw)) is None:
            continue
        mapping[key] = after
        assert found(submission) or reason in NOT_COMPARED, f"{before!r} became {after!r}"
        counts[reason] += 1
        mapping[key] = before
    assert counts[None] > FLIPS // 3
    assert not found(submission)


def test_the_places_hold_a_picture_and_all_kinds_of_text(executed):
    submission, reports = executed
    kinds = {key for _, key, reason in places(submission.cells, reports) if reason is None}
    assert kinds == {"text", "text/markdown", "text/plain", "image/png"}
    assert {"image/png"} < set(PICTURE)
    assert sum("image/png" in str(cell.outputs) for cell in submission.cells) == len(CHARTS)
