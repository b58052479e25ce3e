"""Compile a GPT-2 for a runtime, generate with it, and get latency statistics that say how far it is from what the machine can do."""

import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt2opt import environment
from gpt2opt.apps.deployed.report import scaling_table, statistics_caption, statistics_table
from gpt2opt.apps.deployed.statistics import CorePoint, Scaling, ServingStatistics, Work, core_counts, timed_run
from gpt2opt.decoding.decoder import Model, check_prompts
from gpt2opt.decoding.generation import Generated, Token, collect, stream
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import encode_prompt
from gpt2opt.export.onnx import export_onnx
from gpt2opt.export.openvino import export_ir
from gpt2opt.export.qaic import AI_CORES, compile_program, export_qaic, find_compiler
from gpt2opt.measure.latency import TIMED_RUNS, compare_latency
from gpt2opt.measure.limits import measure_limits
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.onnx_model import load_onnx, require_onnxruntime
from gpt2opt.settings import is_whole
from gpt2opt.sources.gpt2 import check_ids, heads_per_layer
from gpt2opt.sources.models import DEPLOYED, FoundModel, find_model_or_stand_in, load_model, load_tokenizer
from gpt2opt.storage import check_file, check_folder, claim_folder, from_json, read_json, write_result

SETTINGS = DecodingSettings(max_new_tokens=32)
RUNS = 5
PROGRAM = "program"  # the folder beside an export for Cloud AI 100 that its compiler writes


@dataclass(frozen=True)
class Backend:
    """What runs a deployed model. require: raises ImportError if it is not installed. load: None if it does not run on this machine."""

    require: Callable[[], object]
    export: Callable[[Any, Any, Path], Path]
    load: Callable[[Path, int], Model] | None


BACKENDS: Mapping[str, Backend] = {
    "openvino": Backend(lambda: None, lambda model, tokenizer, folder: export_ir(prepare_for_export(model), tokenizer, folder), load_ir),
    "onnxruntime": Backend(require_onnxruntime, export_onnx, load_onnx),
    "qaic": Backend(find_compiler, export_qaic, None),
}
HERE = tuple(name for name, backend in BACKENDS.items() if backend.load)
"""The back-ends that run on this machine."""
ON_THE_CARD = "Qualcomm's runtime runs it on the card (`qaic-runner -t {}/qpc`)"


@dataclass(frozen=True)
class Compiled:
    """A model that was compiled for a back-end and a number of cores of this machine."""

    backend: str
    num_cores: int
    model: Model


@dataclass(frozen=True)
class Description:
    """What an exported folder says of its model in the file `DEPLOYED`, so that `from_pretrained` takes it back without the weights.

    name, origin: of the `FoundModel`. backends: which the folder holds. backend: the one that it was last compiled for.
    """

    name: str
    origin: str
    work: Work
    context: int
    vocab_size: int
    backends: tuple[str, ...] = ()
    backend: str = HERE[0]
    schema: str = "gpt2opt.exported/1"


@dataclass(frozen=True)
class Generation:
    """What `GPT2Deployed.generate` returns: what came of each prompt, and the statistics, None without timed runs."""

    prompts: tuple[str, ...]
    generated: tuple[Generated, ...]
    statistics: ServingStatistics | None

    @property
    def texts(self) -> list[str]:
        """Return the new text of each prompt."""
        return [each.text for each in self.generated]


class GPT2Deployed:
    """A GPT-2 in FP32 on its way from weights to tokens: `from_pretrained`, `export`, `compile`, `generate`, `scaling`.

    Only `from_pretrained` has to be called: `compile` exports what it needs, and `generate` compiles on all cores.

    exported: back-end -> folder. program: the folder of what was compiled last if it was for Cloud AI 100, which does not run here.
    """

    def __init__(self, source: FoundModel, tokenizer: Any, description: Description):
        self.source, self.tokenizer, self.description = source, tokenizer, description
        self.work, self.context, self.vocab_size = description.work, description.context, description.vocab_size
        self.exported: dict[str, Path] = {backend: source.path / backend for backend in description.backends}
        self.compiled: Compiled | None = None
        self.program = None if description.backend in HERE else source.path / PROGRAM
        self._without_weights = bool(self.exported)
        self._scratch: tempfile.TemporaryDirectory | None = None
        self._limits = cache(lambda num_cores: measure_limits(num_cores))

    @classmethod
    def from_pretrained(cls, model_id: str | Path = "gpt2") -> "GPT2Deployed":
        """Find and check a GPT-2, see `find_model`; or take back a folder that `export` wrote, and export nothing anew.

        If `gpt2` can't be had, the bundled model replaces it, and a line on stderr says so.
        """
        if Path(model_id, DEPLOYED).is_file():
            return cls._from_export(Path(model_id))
        source = find_model_or_stand_in(str(model_id))
        if source.stand_in:
            _say(
                "the bundled GPT-2 is used instead of gpt2, which neither the local cache nor the hub gave; its tokenizer is "
                "model.tokenizer. For the real one connect to the hub, or name a directory that holds it"
            )
        tokenizer, model = load_model(source.path)
        matmuls = sum(p.numel() for block in model.transformer.h for p in block.parameters() if p.ndim == 2)
        kv_bytes = 4 * 2 * model.config.n_layer * heads_per_layer(model) * model.transformer.h[0].attn.head_dim
        work = Work(matmuls, model.lm_head.weight.numel(), kv_bytes)
        return cls(source, tokenizer, Description(source.name, source.origin, work, model.config.n_positions, model.config.vocab_size))

    @classmethod
    def _from_export(cls, folder: Path) -> "GPT2Deployed":
        content = read_json(folder / DEPLOYED, Description.schema, "GPT2Deployed.export")
        try:
            found = from_json(Description, content)
            return cls(FoundModel(found.name, found.origin, folder), load_tokenizer(folder / found.backends[0]), found)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / DEPLOYED} is not whole ({type(error).__name__}: {error}); export the model again") from error

    def export(self, folder: Path | str | None = None, backends: Sequence[str] = HERE) -> Path:
        """Write the model for some back-ends, each into a folder of its name that appears whole or not at all; return the folder of all.

        `openvino` is a stateful IR; `onnxruntime` is ONNX with past keys and values in and present ones out; `qaic` is ONNX with a
        retained state of fixed length, as the compiler of Cloud AI 100 takes it.

        folder: a new or empty one, or one that was written here before; None: a temporary one, which goes when this object goes.
        """
        for backend in backends:
            _check_backend(backend)
        if self._without_weights:
            raise ValueError(
                f"{self.source.path} is an export for {', '.join(self.exported)} and holds no weights that {', '.join(backends)} could be "
                f"made from; call from_pretrained with the model itself, {self.source.name}"
            )
        if folder is None:
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="gpt2opt-")
            folder = self._scratch.name
        for place in (Path(folder), *(Path(folder, backend) for backend in backends)):
            check_folder(place)
        check_file(Path(folder, DEPLOYED))
        Path(folder, DEPLOYED).unlink(missing_ok=True)  # what is exported in part is not taken back
        for backend in backends:
            tokenizer, model = load_model(self.source.path)
            self.exported[backend] = BACKENDS[backend].export(model, tokenizer, claim_folder(folder) / backend)
        self._describe(Path(folder))
        return Path(folder)

    def compile(self, num_cores: int | None = None, backend: str | None = None) -> None:
        """Compile the model for one of `BACKENDS`, and export it first if that was not done.

        A program for `qaic` is written into the folder `program` beside the export, so call `export` before, with a folder of your own.

        num_cores: CPU cores, or AI cores of the card for `qaic`; None takes all. If this process may use fewer, it takes those, and a line
        on stderr says so. backend: None takes the one that was compiled for last, which the exported folder remembers; at first `openvino`.
        """
        backend = backend or self.description.backend
        _check_backend(backend)
        if num_cores is not None and not is_whole(num_cores, 1):
            raise ValueError(f"num_cores={num_cores!r}, expected a whole number of at least 1, or None for all cores")
        BACKENDS[backend].require()  # before the export, which takes a while
        load, exported = BACKENDS[backend].load, self.exported.get(backend)
        if load is None:
            if exported is None or (self._scratch and exported.parent == Path(self._scratch.name)):
                raise ValueError(
                    f"a program for {backend} needs a folder that stays: "
                    f"call export('FOLDER', backends=['{backend}']) first, with a folder of your own"
                )
            self.program, self.compiled = compile_program(exported, exported.parent / PROGRAM, num_cores or AI_CORES), None
            self._remember(backend)
            _say(f"the program for Cloud AI 100 is in {self.program}; {ON_THE_CARD.format(self.program)}")
            return
        allowed = environment.threads()
        if num_cores and num_cores > allowed:
            _say(f"num_cores={num_cores}, but this process may use {allowed}: it is compiled for {allowed}")
        num_cores = min(num_cores or allowed, allowed)
        folder = exported or self.export(backends=[backend]) / backend
        self.compiled, self.program = Compiled(backend, num_cores, load(folder, num_cores)), None
        self._remember(backend)

    def generate(
        self, prompts: Sequence[str] | str, tokenizer: Any = None, settings: DecodingSettings = SETTINGS, runs: int = RUNS
    ) -> Generation:
        """Continue prompts, print the text and the latency statistics, and return both.

        The text of one prompt is printed while it is generated. That generation also warms up; the timed ones follow it in silence.

        Args:
            prompts: one or several texts, of any lengths; they are read as one batch.
            tokenizer: the model's, of transformers; None takes the one beside the weights.
            settings: of greedy decoding or sampling.
            runs: timed generations; 0 generates without statistics.
        """
        prompts = tuple(prompts) if isinstance(prompts, Sequence) and not isinstance(prompts, str) else (prompts,)
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        lengths = self._check(prompts, tokenizer, settings, runs)
        compiled = self._compiled()

        start, alone = partial(stream, compiled.model, prompts, settings, tokenizer), len(prompts) == 1
        if alone:
            print(prompts[0], end="", flush=True)
        steps, _ = _timed(start, _print_token if alone else None)
        generated = tuple(collect(len(prompts), itertools.chain(*steps)))
        print("" if alone else "\n\n".join(prompt + each.text for prompt, each in zip(prompts, generated, strict=True)))
        if not runs:
            return Generation(prompts, generated, None)
        limits = self._limits(compiled.num_cores)
        timed = tuple(timed_run(*_timed(start), lengths, self.work, limits) for _ in range(runs))
        statistics = ServingStatistics(str(self.source), compiled.backend, compiled.num_cores, lengths, self.work, limits, timed)
        print(f"\n{statistics_table(statistics)}\n{statistics_caption(statistics)}")
        return Generation(prompts, generated, statistics)

    def scaling(self, prompt_tokens: int = 64, new_tokens: int = 32, runs: int = TIMED_RUNS) -> Scaling:
        """Time the compiled back-end with 1, 2, 4, … and all cores of this process, in turns; print the table and return the samples.

        `gpt2opt.apps.deployed.report.plot_scaling([…])` draws the curve. All sizes are loaded at once: each takes the memory of the model.
        The prompt is of random tokens. runs: timed ones, of each number of cores.
        """
        ids = np.random.default_rng(0).integers(self.vocab_size, size=(1, prompt_tokens))
        check_prompts(ids, new_tokens, self.context, self.vocab_size)
        backend = self._compiled().backend
        load, counts = BACKENDS[backend].load, core_counts(environment.threads())
        assert load
        engines = {count: load(self.exported[backend], count) for count in counts}
        decoders = {str(count): engine.decoder(ids, new_tokens) for count, engine in engines.items()}
        latencies = compare_latency(decoders, prompt_tokens=prompt_tokens, new_tokens=new_tokens, runs=runs)
        points = tuple(CorePoint(count, latencies[str(count)], self._limits(count)) for count in counts)
        scaling = Scaling(str(self.source), backend, self.work, points)
        print(scaling_table(scaling))
        return scaling

    def _describe(self, folder: Path) -> None:
        there = tuple(backend for backend, place in self.exported.items() if place.parent.resolve() == folder.resolve())
        content = dataclasses.asdict(dataclasses.replace(self.description, backends=there))
        write_result(folder / DEPLOYED, json.dumps(content, indent=1) + "\n")

    def _remember(self, backend: str) -> None:
        """Note in the exported folder which back-end was chosen; one that can't be written to is used all the same."""
        if backend == self.description.backend:
            return
        self.description = dataclasses.replace(self.description, backend=backend)
        try:
            self._describe(self.exported[backend].parent)
        except ValueError as error:
            _say(f"that {backend} was chosen is not remembered: {error}")

    def _compiled(self) -> Compiled:
        if self.program:
            raise ValueError(
                f"the model was compiled for Cloud AI 100, into {self.program}: {ON_THE_CARD.format(self.program)}; "
                f"here compile(backend=…) takes {' or '.join(HERE)}"
            )
        if self.compiled is None:
            self.compile()
        assert self.compiled
        return self.compiled

    def _check(self, prompts: Sequence[str], tokenizer: Any, settings: DecodingSettings, runs: int) -> tuple[int, ...]:
        """Return the number of tokens of each prompt, or raise ValueError for what can't be generated."""
        if not hasattr(tokenizer, "decode"):
            raise ValueError(f"tokenizer of type {type(tokenizer).__name__}, expected one of transformers, or None for the model's own")
        check_ids(tokenizer, self.vocab_size)
        if settings.method not in ("greedy", "sampling") or settings.prompt_lookup_num_tokens:
            raise ValueError(f"settings ask for {settings.method}; statistics are of steps of one token: expected greedy or sampling")
        if not isinstance(runs, int) or runs < 0:
            raise ValueError(f"runs={runs!r}, expected a whole number of at least 0")
        if not prompts:
            raise ValueError("no prompt was given, expected at least one text")
        ids = [encode_prompt(tokenizer, prompt, self.context - settings.max_new_tokens) for prompt in prompts]
        return tuple(len(prompt) for prompt in check_prompts(ids, settings.max_new_tokens, self.context, self.vocab_size))


def _timed(start: Callable[[], Iterator[Token]], show: Callable[[Token], None] | None = None) -> tuple[list[list[Token]], list[float]]:
    """Generate; return the tokens and the seconds of each step. The first one tokenizes, too; the time that `show` takes is not counted."""
    steps: list[list[Token]] = []
    seconds: list[float] = []
    before = time.perf_counter()
    for token in start():
        now = time.perf_counter()
        if not steps or token.sequence <= steps[-1][-1].sequence:  # the tokens of a step come in the order of the prompts
            steps.append([])
            seconds.append(0.0)
        seconds[-1] += now - before
        steps[-1].append(token)
        if show:
            show(token)
        before = time.perf_counter()
    return steps, seconds


def _print_token(token: Token) -> None:
    print(token.text, end="", flush=True)


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known; expected one of {', '.join(BACKENDS)}")


def _say(text: str) -> None:
    print(f"gpt2opt: {text}", file=sys.stderr, flush=True)
