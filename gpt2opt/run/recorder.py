"""One run: what was found, what it is asked to do, where it writes, and `measure`, the one way that a model gets into its record."""

import dataclasses
import datetime
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt import environment
from gpt2opt.decoding.text import token_rows, window_length
from gpt2opt.measure.results import Comparison, Latency
from gpt2opt.measure.trace_file import remove_trace
from gpt2opt.report.profile.page import ALL_NAME, ONE_NAME, hash_traces, remove_page, write_pages
from gpt2opt.report.tensorboard import drop_host_names, empty_log, write_tensorboard
from gpt2opt.run.measurements import measure_answers, measure_memory, time_in_turns, trace_in_turns
from gpt2opt.run.record import ROLES, Measurement, Record, Role, StageResult, folder_name, reference_folder
from gpt2opt.run.workload import Workload, make_workload
from gpt2opt.runtime.manifest import is_ir, read_manifest
from gpt2opt.settings import FINETUNE, MIN_CALIBRATION_SEQUENCES, PROFILE, STAGES, Settings
from gpt2opt.sources.gpt2 import heads_per_layer
from gpt2opt.sources.models import FoundModel, find_model, load_model, save_model
from gpt2opt.sources.texts import Texts, find_texts, take_bytes
from gpt2opt.storage import check_file, check_folder, claim_folder, hash_weights, remove_folder, take_lock

RECORD = "run.json"
MIN_CONTEXT = 16
VALIDATION_BYTES = 10_000
"""Text of the fine-tuning part, behind what is trained on, by which the loss is followed while a model is trained."""

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """What the stages share. model: the source. tokenizer: the model's own. workload: what every model is given."""

    out: Path
    traces: Path
    model: FoundModel
    texts: Texts
    tokenizer: PreTrainedTokenizerBase
    workload: Workload
    record: Record
    _controls: dict[str, dict[str, Measurement]] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _mark: float = field(default_factory=time.perf_counter)
    _scratch: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)

    @property
    def settings(self) -> Settings:
        return self.record.settings

    @property
    def scratch(self) -> Path:
        """Return a folder for what libraries want to write beside their results; it is gone when the run is."""
        return Path(self._scratch.name)

    def folder(self, name: str) -> Path:
        """Return the folder of a model's weights; see `folder_name`."""
        return self.out / folder_name(name, self.role(name))

    def trace_folder(self, name: str) -> Path:
        """Return the folder of the trace of a model and of its page; see `folder_name`."""
        return self.traces / folder_name(name, self.role(name))

    def role(self, name: str) -> Role:
        """Return what a model is in the run. One of a name that the four stages don't know is a control of the last stage so far.

        Raises:
            ValueError: there is no stage yet for such a model.
        """
        if name in ROLES:
            return ROLES[name]
        if not self.record.stages:
            raise ValueError(f"{name!r} would be a control of the last stage so far, and there is none; measure 'Baseline' first")
        return Role(self.record.stages[-1].name, control=True, speed=False)

    def load(self, name: str, dtype: str = "float32") -> GPT2LMHeadModel:
        """Load the torch model that was measured under a name, onto the CPU; its `made_from` says which weights it was loaded from.

        Raises:
            ValueError: it has not been measured.
        """
        self.record.measured(name)
        _, model = load_model(self.folder(name), dtype)
        model.made_from = hash_weights(self.folder(name))  # copies keep it, and so does whatever changes the model in place
        return model

    def measure(self, name: str, model: GPT2LMHeadModel | Path, *, control: bool = False, **facts: Any) -> Measurement:
        """Save a model, measure it as every other one, and put the result into the record.

        Every model is scored (perplexity, distance from its reference model) and continues the sample prompts. Models whose role says so
        are also timed, in turns with the models before it that run in the same runtime, the memory of a fresh process is read, and a short
        generation is traced. Stage 1 traces its model by itself, and before. If a stage is measured again, the stages after it are dropped
        from the record, and their traces removed.

        Args:
            name: of the model, as in `record.ROLES`.
            model: in torch, with FP16 parameters; or `run.folder(name)`, if an IR was written there.
            control: take a name that the four stages don't know for a control of the last stage so far.
            facts: what else is to be kept of it: numbers, strings, lists, dicts, arrays and dataclasses of these.

        Raises:
            ValueError: the name is not known, the model is of another dtype or there is no IR, or the model that it is compared with has
                not been measured.
        """
        if name not in ROLES and not control:
            known = ", ".join(map(repr, ROLES))
            raise ValueError(f"{name!r} is none of the models of the four stages ({known}); for a control of your own give control=True")
        role, folder = self.role(name), self.folder(name)
        for other in dict.fromkeys(filter(None, (role.made_from, role.reference))):
            self._check_measured(name, other)
        self._keep(name, model, folder)
        environment.give_back_memory()  # what training left on a GPU
        reference = role.reference and (role.reference, self.folder(role.reference))
        measured = measure_answers(name, folder, self.tokenizer, self.workload, self.settings.new_tokens, reference)
        measured = dataclasses.replace(measured, facts=_plain(facts))
        comparisons: tuple[Comparison, ...] = ()
        if role.speed:
            latency, comparisons = self._time(name, folder)
            memory = measure_memory(folder, self.workload, self.settings.new_tokens)
            measured = dataclasses.replace(measured, latency=latency, memory=memory)
            self._trace(name, folder)
        made_from = getattr(model, "made_from", None) if isinstance(model, GPT2LMHeadModel) else read_manifest(folder).made_from
        self._record(role, measured, comparisons, made_from)
        if role.speed:
            write_pages(self.traces)  # they show the ratios of the record
            self.write()  # behind all that belongs to it
        return measured

    def note(self, name: str, **facts: Any) -> None:
        """Add facts to a model of a stage that has been measured; see `measure`.

        Raises:
            ValueError: it has not been measured.
        """
        self.record.measured(name)
        stage = self.record.stage(self.role(name).stage)
        measured = dataclasses.replace(stage.measurement, facts={**stage.facts, **_plain(facts)})
        self.record.replace(dataclasses.replace(stage, measurement=measured))
        self.write()

    def _check_measured(self, name: str, other: str) -> None:
        if other not in self._controls.get(self.role(other).stage, {}):
            try:
                self.record.measured(other)
            except ValueError:
                raise ValueError(f"{name!r} needs {other!r}, which has not been measured yet; measure that first") from None

    def _keep(self, name: str, model: GPT2LMHeadModel | Path, folder: Path) -> None:
        if isinstance(model, GPT2LMHeadModel):
            if model.dtype != torch.float16:
                raise ValueError(f"{name!r} has parameters in {model.dtype}, expected torch.float16; cast it with model.half()")
            save_model(folder, self.tokenizer, model)
        elif Path(model) != folder or not is_ir(folder):
            raise ValueError(f"{name!r} is {model}, expected a torch model or run.folder({name!r}) with an IR in it; write the IR there")

    def _time(self, name: str, folder: Path) -> tuple[Latency, tuple[Comparison, ...]]:
        """Time a model in turns with all timed models before it of the same runtime; each is compared with its reference model."""
        measured = {m.name for m, _ in self.record.measurements()} | {m for controls in self._controls.values() for m in controls}
        before = [other for other in list(ROLES)[: list(ROLES).index(name)] if other in measured and ROLES[other].speed]
        folders = {name: folder} | {other: self.folder(other) for other in before if is_ir(self.folder(other)) == is_ir(folder)}
        found = time_in_turns(folders, self.workload, self.settings)
        pairs = [(one, reference) for one in found if (reference := ROLES[one].reference) in found]
        return found[name], tuple(Comparison(one, base, found[one], found[base]) for one, base in pairs)

    def _trace(self, name: str, folder: Path) -> None:
        """Trace a model unless it is that of stage 1, in turns with its reference model if that runs in the same runtime."""
        role = self.role(name)
        self._forget_traces(STAGES[STAGES.index(role.stage) + 1 :])
        if role.stage == PROFILE:
            return
        folders = {self.trace_folder(name): folder}
        if role.reference and is_ir(self.folder(role.reference)) == is_ir(folder):
            folders[self.traces / reference_folder(role)] = self.folder(role.reference)
        trace_in_turns(folders, self.workload.prompt)

    def _forget_traces(self, stages: Sequence[str]) -> None:
        """Remove the traces of these stages and of their controls, and the pages of them."""
        for stage in stages:
            for folder in self.traces.glob(f"{stage[0]}-*/"):
                remove_trace(folder)
                remove_page(folder / ONE_NAME)

    def _record(self, role: Role, measured: Measurement, comparisons: tuple[Comparison, ...], made_from: str | None) -> None:
        now = time.perf_counter()
        self._seconds[role.stage] = self._seconds.get(role.stage, 0.0) + now - self._mark
        self._mark = now
        controls = self._controls.setdefault(role.stage, {})
        stages = {stage.name: stage for stage in self.record.stages}
        if role.control:
            controls[measured.name] = measured
            if stage := stages.get(role.stage):
                self.record.replace(dataclasses.replace(stage, controls=tuple(controls.values()), seconds=self._seconds[role.stage]))
        else:
            for later in STAGES[STAGES.index(role.stage) + 1 :]:
                self._controls.pop(later, None)
                self._seconds.pop(later, None)
            own, seconds = hash_weights(self.folder(measured.name)), self._seconds[role.stage]
            self.record.add(StageResult(role.stage, made_from, own, measured, seconds, tuple(controls.values()), comparisons))
        self.write()
        if not role.control or self.record.stages[-1].name == STAGES[-1]:  # other controls are drawn with the next stage
            self.write_tensorboard()

    def write(self) -> None:
        """Write the record, with the hashes of the traces; beside these too: they are handed in with the notebook, the weights are not."""
        self.record.traces = hash_traces(self.traces)
        for folder in (self.out, self.traces):
            self.record.write(folder / RECORD)
        drop_host_names(self.traces / FINETUNE)

    def write_tensorboard(self) -> None:
        """Draw the record in TensorBoard anew, which takes seconds."""
        write_tensorboard(self.record, self.traces / "report")

    def training_texts(self) -> tuple[list[str], list[str]]:
        """Return the texts that are trained on, which also tell the importance of heads, and some behind them to follow the loss by.

        The second list is empty where the fine-tuning part of the text ends before.
        """
        settings, documents = self.settings, self.texts.fine_tune
        taken = take_bytes(documents, settings.fine_tune_bytes)
        rest = take_bytes(documents[len(taken) :], VALIDATION_BYTES)
        return [document.text for document in taken], [document.text for document in rest]


def start_run(model: str = "auto", text: str = "auto", out: str | Path = "artifacts", traces: str | Path = "traces", **settings) -> Run:
    """Find the model and the text, check the versions, fix the seed, and begin an empty record.

    Args:
        model: see `find_model`.
        text: see `find_texts`.
        out: folder of the run: a new or empty one, or that of an earlier run, whose stages are removed. This process locks it.
        traces: folder of the profiler traces and TensorBoard logs.
        settings: fields of `Settings` to change. Lengths that a model with a small context can't have are cut to it.

    Raises:
        ImportError: a package's version is known not to work.
        ValueError: a source can't be found or used, `out` can't be written or is in use, or a launcher started several processes.
    """
    if (processes := environment.launched_processes()) > 1:
        raise ValueError(
            f"{processes} processes were launched, and the four stages run in one; start them without a launcher, "
            "and fine-tune in several with gpt2opt finetune"
        )
    environment.check_stack()
    check_folder(out)
    for result in (Path(out, RECORD), Path(traces, RECORD), Path(traces, ALL_NAME), *Path(traces).glob(f"*/{ONE_NAME}")):
        check_file(result)
    chosen = Settings(**settings)
    found, texts = find_model(model), find_texts(text)
    tokenizer, loaded = load_model(found.path)
    heads_per_layer(loaded)
    chosen = fit_to_context(chosen, window_length(tokenizer))
    workload = make_workload(tokenizer, texts, chosen)
    _check_lengths(texts, chosen, tokenizer, workload)
    out, traces = claim_folder(out), Path(traces)
    take_lock(out)
    environment.set_seed(chosen.seed)
    torch.set_num_threads(environment.threads())
    sources = {
        "model": {"name": found.name, "origin": found.origin, "stand_in": found.stand_in},
        "text": {"name": texts.name, "origin": texts.origin, "stand_in": texts.stand_in, "revision": texts.revision},
    }
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    prompts = [tokenizer.decode(ids) for ids in workload.samples]
    run = Run(out, traces, found, texts, tokenizer, workload, Record(created, environment.describe(), sources, chosen, prompts))
    for earlier in out.glob("[1-4]-*"):
        remove_folder(earlier)
    empty_log(traces / FINETUNE)
    run._forget_traces(STAGES)
    remove_page(traces / ALL_NAME)
    run.write()
    run.write_tensorboard()
    return run


def fit_to_context(settings: Settings, context: int) -> Settings:
    """Cut rows, prompts and new tokens to what the model can read at once; a prompt and its new tokens share that, the prompt gets half.

    Raises:
        ValueError: the context is too small for anything to be measured.
    """
    if context < MIN_CONTEXT:
        raise ValueError(f"the model reads {context} tokens at once, at least {MIN_CONTEXT} are needed; name a model with a longer context")
    new_tokens = min(settings.new_tokens, context // 2)
    prompt_tokens, sequence_length = min(settings.prompt_tokens, context - new_tokens), min(settings.sequence_length, context)
    fitted = dataclasses.replace(settings, new_tokens=new_tokens, prompt_tokens=prompt_tokens, sequence_length=sequence_length)
    if fitted != settings:
        logger.warning(
            "the model reads %d tokens at once, so this run takes rows of %d tokens, and a prompt of %d with %d new tokens",
            context, sequence_length, prompt_tokens, new_tokens,
        )  # fmt: skip
    return fitted


def _check_lengths(texts: Texts, settings: Settings, tokenizer, workload: Workload) -> None:
    """Raise ValueError if a part of the text is too short for what a later stage needs of it, before any stage has begun."""
    length, context = settings.sequence_length, window_length(tokenizer)
    counts = {
        "scored": len(workload.scored.sequences[0][0]) // (settings.prompt_tokens + 1),
        "fine-tuning": whole_rows([d.text for d in take_bytes(texts.fine_tune, settings.fine_tune_bytes)], tokenizer, length),
        "calibration": whole_rows([d.text for d in texts.calibration], tokenizer, context) // MIN_CALIBRATION_SEQUENCES,
    }
    short = [part for part, count in counts.items() if not count]
    if short:
        raise ValueError(
            f"the {' and '.join(short)} part of {texts.name} is too short; expected a prompt of {settings.prompt_tokens} tokens in the "
            f"scored part, a row of {length} in the fine-tuning part and {MIN_CALIBRATION_SEQUENCES} of {context} in the calibration part: "
            "give a longer text"
        )


def whole_rows(texts: list[str], tokenizer, length: int) -> int:
    """Count the rows of a full `length` tokens that the texts give."""
    return sum(len(row) == length for row in token_rows(texts, tokenizer, length))


def _plain(value: Any) -> Any:
    """Return facts as they are read back from JSON: dataclasses as dicts, tuples and arrays as lists, keys as strings."""

    def other(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return dataclasses.asdict(value)
        if isinstance(value, np.ndarray | np.generic | torch.Tensor):
            return value.tolist()
        return str(value)

    return json.loads(json.dumps(value, default=other))
