"""A course notebook that is filled as docs/course.md says, and what counts as a call of this library."""

import re

import pytest
from nbformat.v4 import new_code_cell, new_output

from gpt2opt import course
from gpt2opt.apps.submission.code import DOES, read_code
from tests.apps.submission.conftest import PICTURE
from tests.apps.submission.test_points import UNDECIDED
from tests.conftest import ROOT

NAMES = sorted(course.__all__)
IMPORT = "from gpt2opt.course import *"
PRINTS, QUIET, CHART, VALUE = "prints", "quiet", "chart", "value"
CELLS = [
    ("!nvidia-smi", PRINTS),
    ("import torch\nfrom transformers import GPT2LMHeadModel, GPT2Tokenizer\nfrom gpt2opt.course import *", QUIET),
    ("tokenizer, model = load_fp16_model()", PRINTS),
    ("def test_load_fp16_model():\n    out = model.generate(tokenizer('AI'))\n    print(out)\n\ntest_load_fp16_model()", PRINTS),
    ("train_ds, valid_ds = load_wikitext_dataset()\nprint(train_ds[1]['text'])", PRINTS),
    (
        "import time\nfrom torch.profiler import profile, ProfilerActivity\nprompt = 'The future of AI is'\nmax_new_tokens = 50\n"
        "start = time.time()\nbaseline_latency = measure_latency_gpu(model, tokenizer, prompt)\n"
        "print((time.time() - start) * 1000 / max_new_tokens)",
        PRINTS,
    ),
    ("baseline_ppl = compute_perplexity(model, tokenizer, valid_ds)\nprint(f'{baseline_ppl:.2f}')", PRINTS),
    (
        "_ = model.generate(**tokenizer('warm', return_tensors='pt'), max_new_tokens=5)\npeak_vram = torch.cuda.max_memory_allocated()",
        QUIET,
    ),
    ("profile_model_for_tensorboard(model, tokenizer, prompt=prompt, device='cuda', log_dir='traces', run_name='baseline')", PRINTS),
    ("model = prune_attention_heads(model)", QUIET),
    (
        "prepare_tokenizer_for_padding(tokenizer, model)\ntokenized_train = tokenize_dataset(train_ds, tokenizer)\n"
        "training_args = create_training_arguments()\ntrainer = run_fine_tuning(model, training_args, tokenized_train, tokenizer)",
        PRINTS,
    ),
    (
        "pruned_latency = measure_latency_gpu(model, tokenizer, prompt)\npruned_ppl = compute_perplexity(model, tokenizer, valid_ds)\n"
        "pruned_vram = torch.cuda.max_memory_allocated()\nprint(pruned_latency, pruned_ppl, pruned_vram)",
        PRINTS,
    ),
    (
        "from optimum.intel import INCQuantizer\nmodel.to('cpu')\nquantizer = INCQuantizer.from_pretrained(model)\n"
        "calibration_dataset = prepare_calibration_dataset(valid_ds, tokenizer)\n"
        "run_post_training_quantization(quantizer, calibration_dataset, output_dir='gpt2_pruned_int8')",
        PRINTS,
    ),
    ("quant_model_cpu = load_cpu_model(model_dir='gpt2_pruned_int8')", QUIET),
    (
        "cpu_latency = measure_latency_cpu(quant_model_cpu, tokenizer)\ncpu_ram = peak_ram_usage_gb()\n"
        "cpu_ppl = compute_ppl_cpu(quant_model_cpu, tokenizer, valid_ds)\nprint(cpu_latency, cpu_ram, cpu_ppl)",
        PRINTS,
    ),
    ("metrics = {'Baseline (FP16 GPU)': {'latency': baseline_latency, 'ppl': baseline_ppl, 'vram': peak_vram}}\nmetrics", VALUE),
    ("plot_latency(metrics)", CHART),
    ("plot_memory_usage(metrics)", CHART),
    ("plot_perplexity(metrics)", CHART),
    ("suggestions = get_next_token_suggestions(quant_model_cpu, tokenizer, 'Next', top_k=3)\nprint(suggestions)", PRINTS),
]
OUTPUTS = {
    PRINTS: [new_output("stream", text="12.5 40.03\n")],
    QUIET: [],
    CHART: [new_output("display_data", PICTURE)],
    VALUE: [new_output("execute_result", {"text/plain": "{}"})],
}


def called_as(form: str):
    """Return a function that writes each call of the course's functions in another way."""
    return lambda source: re.sub(rf"(?<!\w)({'|'.join(NAMES)})\(", form, source)


FORMS = {
    "from gpt2opt.course import *": r"\1(",
    "import gpt2opt.course as c": r"c.\1(",
    "import gpt2opt.course": r"gpt2opt.course.\1(",
    "import gpt2opt": r"gpt2opt.course.\1(",
    "from gpt2opt import course": r"course.\1(",
    f"from gpt2opt.course import {', '.join(NAMES)}": r"\1(",
    "from gpt2opt.course import (\n    " + ",\n    ".join(f"{name} as f{place}" for place, name in enumerate(NAMES)) + "\n)": None,
}


@pytest.fixture
def filled(project):
    """Write the course's notebook into the project, with the import in another form."""

    def fill(form: str = IMPORT) -> None:
        written = called_as(FORMS[form]) if FORMS[form] else called_as(lambda found: f"f{NAMES.index(found[1])}(")
        project.cells = {
            str(count): new_code_cell(
                source.replace(IMPORT, form) if IMPORT in source else written(source), execution_count=count, outputs=OUTPUTS[shown]
            )
            for count, (source, shown) in enumerate(CELLS, 1)
        }

    return fill


@pytest.mark.parametrize("form", FORMS)
def test_the_course_notebook_filled_as_its_page_says_meets_every_point(form, filled, project):
    filled(form)
    answers = project.answers()
    assert {name: answer.found for name, answer in answers.items() if not answer.passed}.keys() == UNDECIDED
    assert answers["exported as OpenVINO IR"].found == answers["INCQuantizer"].found == "code cell 13"
    assert answers["prune_attention_heads, 20% per layer"].found == "code cell 10, prune_fraction=0.2"


def test_a_function_of_the_notebooks_own_counts_for_what_it_does_itself(filled, project):
    filled()
    project.cells["10"].source = "def prune_attention_heads(model):\n    return model.prune_heads({})\nmodel = prune_attention_heads(model)"
    for name in ("load_fp16_model", "run_post_training_quantization"):
        project.cells["2"].source += f"\ndef {name}(*given, **more):\n    return other(given)"
    failed = project.failed()
    assert "no INCQuantizer whose quantize() is called" in failed["INCQuantizer"]
    assert "no export: INCQuantizer.quantize writes weights" in failed["exported as OpenVINO IR"]
    assert "not loaded in FP16" in failed["model loaded in FP16"]
    assert "no half() or float16" in failed["recast to FP16"]
    assert "nothing says how many heads are pruned" in failed["prune_attention_heads, 20% per layer"]


@pytest.mark.parametrize(
    ("source", "does"),
    [
        ("from gpt2opt.course import *\nrun_post_training_quantization(q, c, o)", ["quantize_int8"]),
        ("from gpt2opt.course import run_post_training_quantization as f\nf(q)", ["quantize_int8"]),
        ("from gpt2opt.course import *\ndef run_post_training_quantization(q): return q\nrun_post_training_quantization(q)", []),
        ("def f(m):\n    from gpt2opt.run.quantize import run_quantize\n    return run_quantize(m)", ["quantize_int8"]),
        ("import gpt2opt as g\ng.quantize_int8(m, t, c, o)", ["quantize_int8"]),
        ("from gpt2opt import *\nrun_quantize(run)", ["quantize_int8"]),
        ("!gpt2opt run --model auto", ["quantize_int8"]),
        ("!{sys.executable} -m gpt2opt run && echo done", ["quantize_int8"]),
        ("%%bash\ncd x\nHF_HUB_OFFLINE=1 .venv/bin/gpt2opt run", ["quantize_int8"]),
        ("log = !gpt2opt run --until=quantize", ["quantize_int8"]),
        ("!gpt2opt doctor", []),
        ("# !gpt2opt run\nprint('gpt2opt run')", []),
    ],
)
def test_a_call_of_the_library_is_told_from_one_that_only_looks_so(source, does):
    calls = read_code([source]).calls("quantize_int8")
    assert ["quantize_int8" for _ in calls] == does


STEPS = {
    "a command": ["!gpt2opt run"],
    "functions": [
        "import gpt2opt\nrun = gpt2opt.start_run()",
        *(f"gpt2opt.run_{stage}(run)" for stage in ("profile", "prune", "finetune", "quantize")),
    ],
}


@pytest.mark.parametrize("case", STEPS)
def test_the_librarys_own_way_through_the_stages_meets_every_point(case, project):
    cells = {source: new_code_cell(source, outputs=OUTPUTS[PRINTS]) for source in STEPS[case]}
    project.cells = cells | {name: project.cells[name] for name in ("latency", "perplexity", "memory")}
    for count, cell in enumerate(project.cells.values(), 1):
        cell.execution_count = count
    assert {name: found for name, found in project.failed().items() if name not in UNDECIDED} == {}


def test_the_table_names_functions_that_are_there():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "gpt2opt").rglob("*.py")]
    for name in DOES:
        assert name.startswith("gpt2opt ") or any(f"\ndef {name}(" in source for source in sources), name
