"""A small notebook as a student would write it, without a record, in which every point is met."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from gpt2opt.apps.submission.evidence import read_submission
from gpt2opt.apps.submission.points import POINTS, Answer, check_points

PICTURE = {
    "image/png": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "text/plain": "<Figure>",
}
LOAD = """
from transformers import GPT2LMHeadModel, GPT2Tokenizer
def load_fp16_model(model_id="gpt2"):
    '''Loads the model in FP16.'''
    # TODO: Implement this function
    tokenizer = GPT2Tokenizer.from_pretrained(model_id)
    return tokenizer, GPT2LMHeadModel.from_pretrained(model_id).half()
tokenizer, model = load_fp16_model()
print(model.dtype)
"""
MEASURE = """
!nvidia-smi
def measure_latency_gpu(model): return timed(model)
def compute_perplexity(model, dataset): return math.exp(mean_loss(model, dataset))
baseline_latency, baseline_ppl = measure_latency_gpu(model), compute_perplexity(model, valid_ds)
vram = torch.cuda.max_memory_allocated()
print(baseline_latency, baseline_ppl, vram)
"""
PROFILE = """
from torch.profiler import profile
with profile(record_shapes=True) as prof:
    model.generate(ids)
prof.export_chrome_trace("traces/baseline_trace.json")
print("exported")
"""
PRUNE = """
def prune_attention_heads(model, prune_fraction=0.2):
    heads = int(model.config.n_head * prune_fraction)
    model.base_model.prune_heads({layer: list(range(heads)) for layer in range(model.config.n_layer)})
    return model.half()
model = prune_attention_heads(model)
"""
AGAIN = """
pruned_latency, pruned_ppl, vram = measure_latency_gpu(model), compute_perplexity(model, valid_ds), torch.cuda.max_memory_allocated()
print(pruned_latency, pruned_ppl, vram)
"""
TRAIN = """
%load_ext tensorboard
from transformers import Trainer, TrainingArguments
tokenizer.pad_token = tokenizer.eos_token
def tokenize_dataset(dataset, tokenizer): return dataset.map(lambda row: tokenizer(row["text"]))
EPOCHS = 2
trainer = Trainer(model, TrainingArguments("out", num_train_epochs=EPOCHS), train_dataset=tokenize_dataset(train_ds, tokenizer))
trainer.train()
"""
QUANTIZE = """
from optimum.intel import INCQuantizer, OVModelForCausalLM
calibration = valid_ds.filter(lambda row: row["text"].strip()).map(lambda row: tokenizer(row["text"]))
quantizer = INCQuantizer.from_pretrained(model)
quantizer.quantize(config, calibration_dataset=calibration, save_directory="int8")
int8 = OVModelForCausalLM.from_pretrained("tuned", export=True)
"""
ON_CPU = """
cpu_latency, cpu_ppl, ram = measure_latency_cpu(int8), compute_ppl_cpu(int8, valid_ds), psutil.Process().memory_info().rss
print(cpu_latency, cpu_ppl, ram)
"""
SOURCES = {
    "load": LOAD, "measure": MEASURE, "profile": PROFILE, "prune": PRUNE, "again": AGAIN, "train": TRAIN, "quantize": QUANTIZE,
    "cpu": ON_CPU, "latency": "plot_latency(metrics)", "perplexity": "plt.bar(names, ppl)\nplt.show()", "memory": "plot_bars(vram_mb);",
}  # fmt: skip
WITHOUT_OUTPUT = ("prune", "quantize")
CHARTS = ("latency", "perplexity", "memory")
TRACE = {"traceEvents": [{"cat": "cpu_op", "name": "aten::mm", "ts": 1, "dur": 2}, {"ph": "M"}]}


def make_cells() -> dict[str, Any]:
    cells = {}
    for count, (name, source) in enumerate(SOURCES.items(), 1):
        shown = [new_output("display_data", PICTURE)] if name in CHARTS else [new_output("stream", text="12.5 40.03\n")]
        outputs = [] if name in WITHOUT_OUTPUT else shown
        cells[name] = new_code_cell(source.strip(), execution_count=count, outputs=outputs)
    return cells


class Project:
    """A notebook in a folder, with its traces, to change before it is written."""

    def __init__(self, folder: Path):
        self.path = folder / "project.ipynb"
        self.traces = folder / "traces"
        self.cells = make_cells()
        self.metadata: dict[str, Any] = {}
        self.traces.mkdir()
        self.trace = self.traces / "baseline_trace.json"
        self.trace.write_text(json.dumps(TRACE))

    def source(self, name: str, old: str, new: str) -> None:
        """Change the source of a cell."""
        assert old in self.cells[name].source
        self.cells[name].source = self.cells[name].source.replace(old, new)

    def say(self, name: str, text: str) -> None:
        """Let a cell print something more."""
        self.cells[name].outputs.append(new_output("stream", text=text))

    def write(self) -> Path:
        cells = [new_markdown_cell("# GPT-2"), *self.cells.values(), new_code_cell("")]
        nbformat.write(new_notebook(cells=cells, metadata=self.metadata), self.path)
        return self.path

    def answers(self) -> dict[str, Answer]:
        answers = check_points(read_submission(self.write()))
        assert len(answers) == len(POINTS)
        return {answer.point: answer for answer in answers}

    def failed(self) -> dict[str, str]:
        return {name: answer.found for name, answer in self.answers().items() if answer.passed is False}


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)
