import dataclasses
import gzip
import json
import shutil

import pytest
from nbformat.v4 import new_output

from gpt2opt.apps.submission.code import read_code
from gpt2opt.apps.submission.evidence import read_submission
from gpt2opt.apps.submission.points import POINTS, check_points, should_show
from gpt2opt.report import tables
from gpt2opt.report.conclusions import conclude_finetune
from gpt2opt.report.profile.page import hash_traces
from gpt2opt.report.tables import stage_table, summary_table
from tests.apps.submission.conftest import PICTURE, TRACE
from tests.apps.submission.test_secrets import KEYS
from tests.conftest import ROOT
from tests.report.conftest import change as change_record
from tests.report.conftest import keep, make_record

FIGURES = "figures are those of the record"
TRACES = "traces are those of the record"
UNDECIDED = {FIGURES, TRACES}
"""The points that only a record decides."""


def test_every_point_is_met_by_a_notebook_of_a_students_own(project):
    answers = project.answers()
    assert {name for name, answer in answers.items() if not answer.passed} == UNDECIDED
    for point in UNDECIDED:
        assert answers[point].passed is None
        assert "no record: there is no run.json" in answers[point].found


def drop(name):
    return lambda project: project.cells.pop(name)


def change(name, old, new):
    return lambda project: project.source(name, old, new)


def output(name, *outputs):
    return lambda project: setattr(project.cells[name], "outputs", list(outputs))


def count(name, number):
    return lambda project: setattr(project.cells[name], "execution_count", number)


def trace(content):
    return lambda project: project.trace.write_text(content)


TOKEN = KEYS["Hugging Face token"]
STUB = "def tokenize_dataset(dataset, tokenizer):\n    '''Tokenizes.'''\n    # TODO: Map a function over the dataset\n    pass\n"
ERROR = new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])
BROKEN = {
    "run top to bottom, in order": (count("prune", 12), "code cell 4 has execution count 12, expected 4"),
    "run top to bottom, in order, all": (count("train", None), "code cell 6 was not run; restart"),
    "no cell failed": (output("measure", ERROR), "code cell 2 ended in an error: ZeroDivisionError"),
    "saved with outputs": (output("cpu"), "code cell 8 should show something"),
    "saved with outputs, a picture": (
        output("perplexity", new_output("display_data", {"image/png": PICTURE["image/png"].replace("AADUl", "AADVl")})),
        "code cell 10 holds a picture that is damaged",
    ),
    "all TODOs done": (change("train", "def tokenize_dataset(dataset, tokenizer): return", STUB + "x ="), "still empty: tokenize_dataset"),
    "model loaded in FP16": (change("load", ".half()", ""), "the model is not loaded in FP16"),
    "profiled with torch.profiler": (change("profile", "with profile(", "with timer("), "no call of torch.profiler.profile"),
    "perplexity measured": (None, "no call of a function with `perplexity`"),
    "VRAM measured": (None, "no call of torch.cuda.max_memory_allocated"),
    "prune_attention_heads, 20% per layer": (change("prune", "=0.2", "=0.3"), "prune_fraction is 0.3, expected 0.2"),
    "prune_attention_heads, 20% per layer, empty": (change("prune", "    heads =", "    pass\ndef x():\n    heads ="), "still empty"),
    "recast to FP16": (change("prune", "model.half()", "model"), "cast the model again"),
    "measured again": (drop("again"), "latency, perplexity, VRAM: not in calls in code cells 4 to 5"),
    "tokenizer padding": (change("train", "tokenizer.pad_token =", "# tokenizer.pad_token =\nx ="), "pad_token is not set"),
    "tokenize_dataset": (change("train", "tokenize_dataset", "make_rows"), "tokenize_dataset is not called"),
    "TrainingArguments and Trainer": (change("train", "= Trainer(", "= MyTrainer("), "Trainer is not called"),
    "1 to 5 epochs": (change("train", "EPOCHS = 2", "EPOCHS = 20"), "20 epochs, expected 1 to 5"),
    "INCQuantizer": (change("quantize", "INCQuantizer", "OVQuantizer"), "no INCQuantizer"),
    "calibration set filtered and tokenized": (change("quantize", "filter(", "select("), "no calibration set that is filtered"),
    "exported as OpenVINO IR": (change("quantize", "OVModel", "INCModel"), "writes weights for PyTorch, not IR"),
    "latency, RAM, perplexity on the CPU": (change("cpu", "memory_info", "name"), "RAM: not in calls in code cells 7 to 11"),
    "chart of latency": (output("latency", new_output("stream", text="12 ms")), "no code cell that names latency has a picture"),
    "chart of perplexity": (output("perplexity", new_output("stream", text="12")), "no code cell that names perplexity has a picture"),
    "chart of memory": (output("memory", new_output("stream", text="12 MB")), "no code cell that names memory has a picture"),
    "traces present and not empty": (lambda project: shutil.rmtree(project.traces), "no profiler trace (.json or .json.gz, of any name)"),
    "traces present and not empty, operators": (trace('{"traceEvents": [{"ph": "M"}]}'), "no operator among them"),
    "traces present and not empty, JSON": (trace("cut"), "is no trace in Chrome's format (JSONDecodeError"),
    "no key or token": (change("load", "# TODO:", f"login('{TOKEN}') #"), "code cell 1: Hugging Face token hf_aB…"),
    "no home path": (change("load", 'model_id="gpt2"', 'model_id="/home/jane/gpt2"'), "code cell 1: home path /home/jane"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_point_that_is_not_met_is_named(case, project):
    point = next(name for _, name, _ in sorted(POINTS, key=lambda point: -len(point[1])) if case.startswith(name))
    breaking, message = BROKEN[case]
    if breaking is None:  # in every cell
        for cell in project.cells.values():
            cell.source = cell.source.replace("compute_p", "score_p").replace("max_memory_allocated", "reset_peak_memory_stats")
            cell.source = cell.source.replace("score_perplexity", "score").replace("score_ppl_cpu", "score")
    else:
        breaking(project)
    assert message in project.failed()[point]


def test_each_point_but_those_of_the_record_is_broken_once():
    assert {name for _, name, _ in POINTS} - UNDECIDED <= {case.partition(", all")[0] for case in BROKEN}


@pytest.mark.parametrize("name", [r"torch\cuda\__init__.py(219): _lazy_init", 'prompt "Hello"', "two\nlines"])
def test_a_trace_counts_although_torch_did_not_escape_its_names(project, name):
    trace(f'[null, {{"cat": "cpu_op", "name": "{name}", "ts": 1, "dur": 2}}]')(project)
    assert project.failed() == {}
    trace(f'[{{"cat": "cpu_op", name": "{name}"}}]')(project)
    assert "give your labels of record_function no quotes" in project.failed()["traces present and not empty"]


def test_what_stands_in_a_comment_or_a_docstring_is_no_evidence(project):
    project.source("quantize", "quantizer = INCQuantizer.from_pretrained(model)", "'''INCQuantizer'''  # INCQuantizer.from_pretrained()")
    project.source("quantize", "INCQuantizer, ", "")
    assert "INCQuantizer" in project.failed()


def test_cells_that_are_no_python_do_no_harm(project):
    project.source("measure", "!nvidia-smi", "x = !nvidia-smi\n?print\n%timeit f()")
    project.cells["again"].source = "%%time\n" + project.cells["again"].source
    project.cells["profile"].source += "\nprint('half"  # no Python at all: it counts for nothing
    assert list(project.failed()) == ["profiled with torch.profiler"]


@pytest.fixture
def recorded(project):
    """The notebook with a record beside its traces, and its summary in the last cell."""
    record = make_record()
    for folder in ("1-profile", "4-control-fp32"):
        (project.traces / folder).mkdir()
        (project.traces / folder / "gpt2opt.pt.trace.json.gz").write_bytes(gzip.compress(json.dumps(TRACE | {"of": folder}).encode()))
        (project.traces / folder / "profile.html").write_text(f"<title>{folder}</title>")
    record.traces = hash_traces(project.traces)
    record.write(project.traces / "run.json")
    project.cells["memory"].outputs.append(new_output("execute_result", {"text/markdown": summary_table(record).markdown()}))
    return project


def test_figures_that_are_the_records_pass(recorded):
    answers = recorded.answers()
    assert answers[FIGURES].passed is True
    assert answers[FIGURES].found == "the numbers of 0 tables and texts, and those of the summary, are those of the record"
    assert answers["prune_attention_heads, 20% per layer"].found == "code cell 4, prune_fraction=0.2"


def show_pruned(recorded, text: str) -> None:
    """Let a cell print the table of stage 2, which came out as `text`."""
    recorded.cells["again"].source += "\nprint(gpt2opt.stage_table(run.record, '2-prune'))"
    recorded.say("again", text)


@pytest.mark.parametrize("shown", [str, lambda table: table.markdown()])
def test_a_figure_that_is_not_the_records_fails(shown, recorded):
    table = stage_table(make_record(), "2-prune")
    perplexity = table.rows[1][6].split()[0]
    show_pruned(recorded, shown(table).replace(f" {perplexity} ", " 9.87 "))
    found = recorded.failed()[FIGURES]
    assert found == (
        f"code cell 5 does not show what stage_table gives for this record: it lacks {perplexity}; run the notebook again, top to bottom"
    )


def test_a_summary_that_is_not_shown_fails(recorded):
    recorded.cells["memory"].outputs.pop()
    assert recorded.failed()[FIGURES].startswith("no output shows the figures of Baseline, Pruned, Pruned, first heads")


def test_a_conclusion_from_another_run_fails(recorded):
    recorded.cells["again"].source += "\nprint(gpt2opt.conclude_finetune(run.record))"
    recorded.say("again", conclude_finetune(with_tuned_control()).replace("gained 0.300 ", "gained 0.309 "))
    recorded.cells["memory"].outputs[-1].data["text/markdown"] = summary_table(with_tuned_control()).markdown()
    (recorded.traces / "run.json").write_text(json.dumps(dataclasses.asdict(with_tuned_control())))
    assert "code cell 5 does not show what conclude_finetune gives for this record: it lacks " in recorded.failed()[FIGURES]


def test_other_words_around_the_same_numbers_pass(recorded):
    shown = str(stage_table(make_record(), "2-prune"))
    show_pruned(recorded, f"{shown.replace('TTFT ms', 'time to first token, ms')}\nand more\n")
    assert recorded.failed() == {}


def test_a_table_without_one_of_its_rows_fails(recorded):
    *above, _, last = str(stage_table(make_record(), "2-prune")).split("\n")
    show_pruned(recorded, "\n".join([*above, last]))
    assert "code cell 5 does not show what stage_table gives" in recorded.failed()[FIGURES]


@pytest.mark.parametrize("name", ["summary_table", "speed_table", "memory_table"])
def test_what_was_shown_before_the_last_stage_passes(name, recorded):
    record = make_record()
    keep(record, "Baseline", "Pruned", "Pruned, first heads")
    recorded.cells["again"].source += f"\nprint(gpt2opt.{name}(run.record))\nprint('and more')"
    recorded.say("again", f"{getattr(tables, name)(record)}\nand more\n")
    assert recorded.failed() == {}


def test_a_call_whose_result_is_not_shown_asks_for_no_output(recorded):
    recorded.cells["again"].source += "\nrows = len(gpt2opt.summary_table(run.record).rows)\nnotice = gpt2opt.stand_in_notice(run.record)"
    recorded.cells["again"].source += "\ngpt2opt.speed_table(run.record).rows;\nprint(gpt2opt.perplexity_ratio(one, other))\nprint(str())"
    recorded.cells["again"].source += "\nfor name in STAGES: print(gpt2opt.stage_table(run.record, name))"
    assert recorded.failed() == {}


def test_a_table_or_a_text_behind_words_of_ones_own_passes(recorded):
    record = with_tuned_control()
    record.traces = hash_traces(recorded.traces)
    record.write(recorded.traces / "run.json")
    recorded.cells["memory"].outputs[-1].data["text/markdown"] = summary_table(record).markdown()
    recorded.cells["again"].source += "\nprint('all:', gpt2opt.summary_table(run.record))"
    recorded.cells["again"].source += "\nprint('so:', gpt2opt.conclude_finetune(run.record))"
    said = conclude_finetune(record)
    recorded.say("again", f"all: {summary_table(record)}\nso: {said}\n")
    assert recorded.failed() == {}
    recorded.cells["again"].outputs[-1].text = f"so: {said.replace('nats', 'bits')}\n"
    assert "does not show what summary_table gives for this record: it lacks " in recorded.failed()[FIGURES]


def test_what_the_record_lacks_fails(recorded):
    recorded.cells["again"].source += "\nprint(gpt2opt.conclude_quantize(run.record))"
    found = recorded.failed()[FIGURES]
    assert found == "code cell 5 calls conclude_quantize, for which the record lacks something; run the notebook again, top to bottom"


def with_tuned_control():
    record = make_record()
    control = dataclasses.replace(record.models["Fine-tuned"], name="Fine-tuned, unpruned", latency=None, memory=None)
    record.models = {**record.models, control.name: control}
    return record


def test_the_record_decides_where_it_says_otherwise(recorded):
    record = make_record()
    record.settings = dataclasses.replace(record.settings, prune_fraction=0.5, epochs=9)
    (recorded.traces / "run.json").write_text(json.dumps(dataclasses.asdict(record)))
    failed = recorded.failed()
    assert failed["prune_attention_heads, 20% per layer"] == "prune_fraction is 0.5, expected 0.2: 20% of the heads of every layer"
    assert failed["1 to 5 epochs"] == "9 epochs, expected 1 to 5"


@pytest.mark.parametrize(
    ("name", "parts", "point", "says"),
    [
        ("Baseline", {"dtype": "float32"}, "model loaded in FP16", "'Baseline' was float32, expected float16"),
        ("Baseline", {"quality": None}, "perplexity measured", "no quality of 'Baseline'"),
        ("Baseline", {"memory": None}, "VRAM measured", "no memory of 'Baseline'"),
        ("Pruned", {"dtype": "float32"}, "recast to FP16", "'Pruned' was float32, expected float16"),
        ("Pruned", {"latency": None, "memory": None}, "measured again", "no latency, no memory of 'Pruned'; measure it with run.measure"),
        (
            "Pruned",
            {"facts": {"pruned_heads": {"0": [1], "1": [1, 2]}}},
            "prune_attention_heads, 20% per layer",
            "{'0': 1, '1': 2}, expected",
        ),
        ("INT8", None, "latency, RAM, perplexity on the CPU", "the record has no 'INT8'; run the notebook to its end"),
    ],
)
def test_what_the_record_does_not_show_is_not_met_by_the_code_alone(name, parts, point, says, recorded):
    record = make_record()
    if parts is None:
        del record.models[name]
    else:
        change_record(record, name, **parts)
    (recorded.traces / "run.json").write_text(json.dumps(dataclasses.asdict(record)))
    assert says in recorded.failed()[point]


def test_a_record_that_cannot_be_read_is_none(project):
    (project.traces / "run.json").write_text('{"mine": 1}')
    answer = project.answers()[FIGURES]
    assert answer.passed is None
    assert "has schema None, expected 'gpt2opt.run/4'" in answer.found


def test_the_projects_own_notebook_meets_every_point():
    answers = check_points(read_submission(ROOT / "project.ipynb"))
    assert {answer.point: answer.found for answer in answers if answer.passed is False} == {}


def swap(traces):
    one, other = (traces / folder / "gpt2opt.pt.trace.json.gz" for folder in ("1-profile", "4-control-fp32"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


OF_ANOTHER_RUN = {
    "of another run": (
        lambda traces: shutil.copy(traces / "baseline_trace.json", traces / "1-profile" / "gpt2opt.pt.trace.json.gz"),
        "1-profile/gpt2opt.pt.trace.json.gz is not the one that the run wrote",
    ),
    "swapped": (swap, "1-profile/gpt2opt.pt.trace.json.gz is not the one that the run wrote; 4-control-fp32/gpt2opt"),
    "a control's is missing": (
        lambda traces: shutil.rmtree(traces / "4-control-fp32"),
        "4-control-fp32/gpt2opt.pt.trace.json.gz is missing; 4-control-fp32/profile.html is missing",
    ),
    "one too many": (
        lambda traces: shutil.copytree(traces / "1-profile", traces / "2-prune"),
        "2-prune/gpt2opt.pt.trace.json.gz is not in the record; run the notebook again",
    ),
    "a page of another run": (
        lambda traces: (traces / "1-profile" / "profile.html").write_text("<title>other</title>"),
        "1-profile/profile.html is not the one that the run wrote",
    ),
}


@pytest.mark.parametrize("case", OF_ANOTHER_RUN)
def test_a_trace_that_is_not_the_records_fails_by_its_name(case, recorded):
    assert recorded.answers()[TRACES].found == "5 files, each by its SHA-256"
    break_traces, message = OF_ANOTHER_RUN[case]
    break_traces(recorded.traces)
    assert message in recorded.failed()[TRACES]


def test_what_a_user_keeps_among_the_traces_does_no_harm(recorded):
    (recorded.traces / "notes.html").write_text("mine")
    (recorded.traces / ".ipynb_checkpoints").mkdir()
    shutil.copy(recorded.trace, recorded.traces / ".ipynb_checkpoints")
    assert recorded.answers()[TRACES].passed is True


def test_a_record_that_knows_no_traces_fails(recorded):
    make_record().write(recorded.traces / "run.json")
    assert "baseline_trace.json is not in the record; run the notebook again" in recorded.failed()[TRACES]


def test_traces_of_the_command_line_are_found_beside_its_record(recorded):
    (recorded.path.parent / "artifacts").mkdir()
    recorded.traces.rename(recorded.path.parent / "artifacts" / "traces")
    assert recorded.failed() == {}
    assert recorded.answers()[TRACES].passed is True


@pytest.mark.parametrize(
    ("source", "shows"),
    [
        ("x = 1", False), ("x = 1\nx", True), ("x = 1\nx;", False), ("print(1)\nx = 2", True), ("model.eval()", False), ("f.head()", True),
        ("model.train()\nx = 1", False), ("def f():\n    print(1)", False), ("%%capture\nprint(1)", False), ("run.summary_table(x)", True),
        ("plot_latency(metrics);", True), ("await fetch()", False), ("", False), ("# nothing", False),
    ],
)  # fmt: skip
def test_a_cell_that_should_show_something_is_told_from_one_that_need_not(source, shows):
    assert should_show(read_code([source]).cells[0], source) is shows
