"""One run: what was found, what it is asked to do, where it writes. `measure` is the one way into its record; `draw` draws the record."""

import dataclasses
import datetime
import json
import logging
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, set_seed

from gpt2opt import environment
from gpt2opt.decoding.text import token_rows, window_length
from gpt2opt.measure.results import Latency
from gpt2opt.measure.trace_file import remove_trace
from gpt2opt.report.profile.page import ALL_NAME, ONE_NAME, hash_traces, remove_page, write_pages
from gpt2opt.report.tensorboard import drop_host_names, empty_log, write_tensorboard
from gpt2opt.run.measurements import Workload, load_measured, make_workload, measure_answers, measure_memory, time_in_turns, trace_in_turns
from gpt2opt.run.record import ROLES, Measurement, Record, folder_name, reference_folder
from gpt2opt.runtime.manifest import is_ir, read_manifest
from gpt2opt.settings import FINETUNE, MIN_CALIBRATION_SEQUENCES, PROFILE, STAGES, Settings
from gpt2opt.sources.gpt2 import heads_per_layer, source_weights
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
        return self.out / folder_name(name, self.record.role(name))

    def trace_folder(self, name: str) -> Path:
        """Return the folder of the trace of a model and of its page; see `folder_name`."""
        return self.traces / folder_name(name, self.record.role(name))

    def load(self, name: str, dtype: str = "float32") -> GPT2LMHeadModel:
        """Load the torch model that was measured under a name, onto the CPU.

        Raises:
            ValueError: it has not been measured.
        """
        self.record.measured(name)
        return load_model(self.folder(name), dtype)[1]

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
        begun = time.perf_counter()
        if name not in ROLES and not control:
            known = ", ".join(map(repr, ROLES))
            raise ValueError(f"{name!r} is none of the models of the four stages ({known}); for a control of your own give control=True")
        role, folder = self.record.role(name), self.folder(name)
        for other in filter(None, (role.made_from, role.reference)):
            if other not in self.record.models:
                raise ValueError(f"{name!r} needs {other!r}, which has not been measured yet; measure that first")
        weights_in = self._keep(name, model, folder)
        environment.give_back_memory()  # what training left on a GPU
        logger.info("%s: what it answers", name)
        models = {one: load_measured(self.folder(one)) for one in (name, role.reference) if one}
        measured = measure_answers(name, folder, models, self.tokenizer, self.workload, self.settings.new_tokens)
        if not role.control:
            self._forget_traces(STAGES.index(role.stage) + 1)
        if role.speed:
            logger.info("%s: where its time goes, its latency in turns with others, its memory", name)
            self._trace(name, models)
            del models
            latencies = self._time(name)
            memory = measure_memory(folder, self.workload, self.settings.new_tokens)
            measured = dataclasses.replace(measured, latency=latencies.pop(name), in_turns=latencies, memory=memory)
        own = hash_weights(folder)
        measured = dataclasses.replace(
            measured, weights_in=weights_in, weights=own, facts=_plain(facts), seconds=time.perf_counter() - begun
        )
        self.record.add(measured)
        self.write()
        return measured

    def draw(self) -> None:
        """Draw the record: a page for each trace and one of all, and TensorBoard. It takes seconds."""
        write_pages(self.traces)
        write_tensorboard(self.record, self.traces / "report")
        self.write()

    def write(self) -> None:
        """Write the record, with the hashes of the traces; beside these too: they are handed in with the notebook, the weights are not."""
        drop_host_names(self.traces / FINETUNE)
        self.record.traces = hash_traces(self.traces)
        for folder in (self.out, self.traces):
            self.record.write(folder / RECORD)

    def training_texts(self) -> tuple[list[str], list[str]]:
        """Return the texts that are trained on, which also tell the importance of heads, and some behind them to follow the loss by.

        The second list is empty where the fine-tuning part of the text ends before.
        """
        settings, documents = self.settings, self.texts.fine_tune
        taken = take_bytes(documents, settings.fine_tune_bytes)
        rest = take_bytes(documents[len(taken) :], VALIDATION_BYTES)
        return [document.text for document in taken], [document.text for document in rest]

    def _keep(self, name: str, model: GPT2LMHeadModel | Path, folder: Path) -> str | None:
        """Save a model unless it is an IR in its folder; return the hash of the weights that it was made from."""
        if isinstance(model, GPT2LMHeadModel):
            if model.dtype != torch.float16:
                raise ValueError(f"{name!r} has parameters in {model.dtype}, expected torch.float16; cast it with model.half()")
            made_from = source_weights(model)
            save_model(folder, self.tokenizer, model)
            return made_from
        if Path(model) != folder or not is_ir(folder):
            raise ValueError(f"{name!r} is {model}, expected a torch model or run.folder({name!r}) with an IR in it; write the IR there")
        return read_manifest(folder).made_from

    def _time(self, name: str) -> dict[str, Latency]:
        """Time a model in turns with all timed models before it of the same runtime."""
        before = [other for other in list(ROLES)[: list(ROLES).index(name)] if other in self.record.models and ROLES[other].speed]
        same_runtime = [other for other in before if is_ir(self.folder(other)) == is_ir(self.folder(name))]
        return time_in_turns({one: self.folder(one) for one in (*same_runtime, name)}, self.workload, self.settings)

    def _trace(self, name: str, models: dict[str, Any]) -> None:
        """Trace a model unless it is that of stage 1, in turns with its reference model if that runs in the same runtime."""
        role = self.record.role(name)
        if role.stage == PROFILE:
            return
        places = {self.trace_folder(name): models[name]}
        if role.reference and is_ir(self.folder(role.reference)) == is_ir(self.folder(name)):
            places[self.traces / reference_folder(role)] = models[role.reference]
        trace_in_turns(places, self.workload.prompt)

    def _forget_traces(self, first: int = 0) -> None:
        """Remove the traces of the stages from the one of this index on, those of their controls too, and the pages of them."""
        for stage in STAGES[first:]:
            for folder in self.traces.glob(f"{stage[0]}-*/"):
                remove_trace(folder)
                remove_page(folder / ONE_NAME)


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
    if Path(out).resolve() in found.path.resolve().parents:
        raise ValueError(f"the model {found.path} is in {out}, the folder of a run, and a new run would remove it; name another folder")
    tokenizer, loaded = load_model(found.path)
    heads_per_layer(loaded)
    chosen = fit_to_context(chosen, window_length(tokenizer))
    workload = make_workload(tokenizer, texts, chosen)
    _check_lengths(texts, chosen, tokenizer, workload)
    out, traces = claim_folder(out), Path(traces)
    take_lock(out)
    set_seed(chosen.seed)
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
    run._forget_traces()
    remove_page(traces / ALL_NAME)
    write_tensorboard(run.record, traces / "report")
    run.write()
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
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, np.ndarray | np.generic | torch.Tensor):
            return value.tolist()
        return str(value)

    return json.loads(json.dumps(value, default=other))
