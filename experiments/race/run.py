"""A fair race of the engines that run GPT-2 on a CPU, beside what the machine can do at best.

Each engine has a process of its own, the same threads, the same prompts and the same number of new tokens. See `turns` for the rounds,
`engines` for who takes part, `results` for what comes out.
"""

import dataclasses
import datetime
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.contract import json_path, write_json
from experiments.race.engines import ENGINES
from experiments.race.engines.base import Engine
from experiments.race.engines.ours import Ours
from experiments.race.results import CASES, MAIN, SHORT, CaseTimings, EngineResult, GrowthPoint, Models, RaceResult, Shape, best_peer
from experiments.race.turns import Case, Outcome, RemoteEngine, loaded, make_prompts, one_line, race
from gpt2opt import environment
from gpt2opt.measure.child import Child, thread_settings
from gpt2opt.measure.limits import Probe
from gpt2opt.measure.memory import ChildRun, in_fresh_process
from gpt2opt.settings import check_whole
from gpt2opt.sources.models import save_model
from gpt2opt.storage import check_folder, claim_folder, new_folder, remove_folder, take_lock

SIZES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280)}
"""Layers, heads and width, for the bundled model to be stretched to where there are no real weights."""
PRUNE_FRACTION = 0.2
CONTEXTS, BATCHES = (128, 256, 512, 1016), (1, 2, 4, 8, 16)
GROWTH_CASES = (*(Case(tokens, 8) for tokens in CONTEXTS), *(Case(CONTEXTS[0], 8, batch) for batch in BATCHES[1:]))
GROWTH_ROUNDS = 3
RESERVE_BYTES = 4e9
"""Memory that stays free beside the loaded engines: for what they need while they work."""


def run_race(size: str = "gpt2", rounds: int = 5, engines: str = "", out: Path | str = "race") -> RaceResult:
    """Race the engines and write `bench.json`, after each round with what there is so far; progress goes to stderr.

    Args:
        size: `gpt2`, `gpt2-medium`, `gpt2-large`, or a directory with a GPT-2. Where there are no real weights, the bundled model is
            stretched to that size; see `stretch_model`.
        rounds: timed rounds; the intervals are over these.
        engines: names as `slug` writes them, with commas between them; all where empty. Ours always races.
        out: folder of the result and of the converted models, which are made anew: a new or empty one, or that of an earlier race.

    Raises:
        ValueError: an unknown engine or size, rounds < 1, or `out` can't be written.
        RuntimeError: the models can't be made.
    """
    check_whole("rounds", rounds, 1)
    check_size(size)
    check_folder(out)
    chosen, out, threads = choose_engines([name for name in engines.split(",") if name]), claim_folder(out), environment.threads()
    take_lock(out)
    _say(f"models: {size}, whole and with {PRUNE_FRACTION:.0%} of the heads pruned, or as near below as whole heads come")
    models = prepare_models(size, out)
    entries = [enter(engine, models, out) for engine in chosen]
    contestants, entries = start(entries, chosen, out, threads)
    begun = RaceResult(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        environment=environment.describe(),
        size=size,
        models=models,
        rounds=0,
        limits=(),
        engines=tuple(entries),
    )
    try:
        for result in race_with_limits(begun, contestants, chosen, rounds, threads):
            write_json(json_path("race", out), result)
        result = dataclasses.replace(result, growth=race_growth(result, contestants))
        write_json(json_path("race", out), result)
    finally:
        for worker in contestants.values():
            worker.close()
    result = with_memory(result, {engine.name: engine for engine in chosen}, out, threads)
    write_json(json_path("race", out), result)
    return result


def check_size(size: str) -> None:
    """Raise ValueError unless a model can be found or made for this size."""
    if size not in SIZES and not Path(size).is_dir():
        raise ValueError(f"size {size!r} is neither a directory nor one of {', '.join(SIZES)}")


def slug(engine: type[Engine]) -> str:
    """Return an engine's name as it is typed: `openvino-fp32`."""
    return engine.name.lower().replace(",", "").replace(" ", "-")


def choose_engines(names: Sequence[str]) -> tuple[type[Engine], ...]:
    """Return the engines of these names, ours first.

    Raises:
        ValueError: one is unknown.
    """
    known = {slug(engine): engine for engine in ENGINES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"engine {unknown[0]!r} is not known; expected some of {', '.join(known)}")
    return tuple(engine for name, engine in known.items() if engine is Ours or not names or name in names)


def fitting(cases: Sequence[Case], context: int, texts: Sequence[str]) -> list[Case]:
    """Return the cases of these kinds of text that fit into the context."""
    return [case for case in cases if case.text in texts and case.prompt_tokens + case.new_tokens <= context]


# What runs in fresh processes.


def make_models(size: str, folder: Path) -> Models:
    """Write the model, whole and pruned, into `folder`; find real weights, or stretch the bundled model.

    Raises:
        ValueError: a directory without a GPT-2.
    """
    environment.quiet()
    from gpt2opt.prune import prune_attention_heads
    from gpt2opt.sources.gpt2 import heads_per_layer
    from gpt2opt.sources.models import find_model, load_model

    try:
        found = find_model(size)
        (tokenizer, model), weights = load_model(found.path), str(found)
    except ValueError:
        if size not in SIZES:
            raise
        (tokenizer, model), weights = _stretched_bundled(*SIZES[size])
    shapes, heads = [], []
    for part in ("full", "pruned"):
        if part == "pruned":
            prune_attention_heads(model, PRUNE_FRACTION)
        save_model(folder / part, tokenizer, model)
        matmuls = [p.numel() for block in model.transformer.h for p in block.parameters() if p.ndim == 2]
        shapes.append(Shape(sum(matmuls), model.lm_head.weight.numel()))
        heads.append(heads_per_layer(model))
    return Models(weights, *heads, model.config.vocab_size, model.config.n_positions, *shapes)


def _stretched_bundled(layers: int, heads: int, width: int) -> tuple[tuple, str]:
    """Return `(tokenizer, model)` of a shape, with GPT-2's vocabulary and context, and how its weights were made."""
    from experiments.race.stretch import stretch_model, stretch_tokenizer
    from gpt2opt.sources.models import BUNDLED, load_model

    tokenizer, small = load_model(BUNDLED)
    model = stretch_model(small, layers, heads, width)
    weights = (
        f"the bundled model's, stretched from {small.config.n_layer} × {small.config.n_embd} to {layers} × {width}: channels and units "
        "copied so that the function stays, blocks repeated"
    )
    return (stretch_tokenizer(tokenizer, model.config.vocab_size, model.config.n_positions), model), weights


def convert(engine: type[Engine], source: Path, folder: Path) -> str | None:
    """Prepare an engine's folder; return its remark."""
    environment.quiet()
    with new_folder(folder) as partial:
        return engine().prepare(source, partial)


def generate_once(engine: type[Engine], folder: Path, threads: int, prompts: np.ndarray, new_tokens: int) -> None:
    """Load an engine and generate, for the memory that takes."""
    environment.quiet()
    loaded(engine, folder, threads).generate(prompts, new_tokens)


# The steps of a run, in order.


def prepare_models(size: str, out: Path) -> Models:
    """Write both models in a fresh process, see `make_models`; those that an earlier race converted are removed."""
    for earlier in (out / "models").glob("*"):
        remove_folder(earlier)
    return in_fresh_process(make_models, size, out / "models").value


def enter(engine: type[Engine], models: Models, out: Path) -> EngineResult:
    """Convert the model for one engine; an engine that is not installed or fails is left out, with the reason."""
    result = EngineResult(
        name=engine.name,
        package=engine.package,
        version=environment.installed(engine.package),
        note=engine.note,
        full_heads=engine.full_heads,
        shape=models.full if engine.full_heads else models.pruned,
        block_bytes=engine.block_bytes,
        head_bytes=engine.head_bytes,
    )
    if result.version is None:
        return dataclasses.replace(result, left_out=f"{engine.package} is not installed")
    try:
        folder, done = prepare(engine, out)
    except (RuntimeError, OSError) as error:
        return dataclasses.replace(result, left_out=f"failed: {one_line(str(error))}")
    return dataclasses.replace(
        result,
        note="; ".join(filter(None, (engine.note, done.value))),
        disk_bytes=disk_bytes(engine, folder),
        prepare_peak_rss_bytes=done.peak_rss_bytes,
    )


def prepare(engine: type[Engine], out: Path) -> tuple[Path, ChildRun]:
    """Convert the model for an engine; what it is made from is made first, unless this run has it already.

    Returns:
        Its folder, and the remark and the peak RSS of the process that converted.
    """
    source = out / "models" / ("full" if engine.full_heads else "pruned")
    if engine.made_from:
        source = _folder(engine.made_from, out)
        if not disk_bytes(engine.made_from, source):
            prepare(engine.made_from, out)
    folder, begun = _folder(engine, out), time.monotonic()
    _say(f"preparing {engine.name}{f' ({engine.note})' if engine.note else ''} …")
    done = in_fresh_process(convert, engine, source, folder)
    _say(f"… in {time.monotonic() - begun:.0f} s{f'; {done.value}' if done.value else ''}")
    return folder, done


def _folder(engine: type[Engine], out: Path) -> Path:
    return out / "models" / slug(engine)


def disk_bytes(engine: type[Engine], folder: Path) -> int:
    return sum(path.stat().st_size for pattern in engine.files for path in folder.glob(pattern) if path.is_file())


def start(
    entries: Sequence[EngineResult], chosen: Sequence[type[Engine]], out: Path, threads: int
) -> tuple[dict[str, RemoteEngine], list[EngineResult]]:
    """Start a process for every engine in the race, as long as memory lasts; return them, and the entries with what failed."""
    contestants, checked = {}, []
    for entry, engine in zip(entries, chosen, strict=True):
        if not entry.left_out:
            try:
                contestants[entry.name] = _started(engine, _folder(engine, out), threads)
            except RuntimeError as error:
                entry = dataclasses.replace(entry, left_out=f"failed: {one_line(str(error))}")
        checked.append(entry)
    _say(f"racing, after a warm-up in which some compile: {'; '.join(contestants)}")
    return contestants, checked


def _started(engine: type[Engine], folder: Path, threads: int) -> RemoteEngine:
    import psutil

    contestant = RemoteEngine(engine, folder, threads)
    if psutil.virtual_memory().available < RESERVE_BYTES:
        contestant.close()
        raise RuntimeError("no memory left beside the engines before it; name fewer")
    return contestant


def race_with_limits(
    result: RaceResult, contestants: Mapping[str, RemoteEngine], chosen: Sequence[type[Engine]], rounds: int, threads: int
) -> Iterator[RaceResult]:
    """Race, and yield the result so far after every round; the limits of the machine are measured then too, under the same load."""
    cases = {engine.name: fitting(CASES, result.models.context, engine.texts) for engine in chosen}
    probe, limits = Child(Probe, threads, environment=thread_settings(threads)), []
    try:
        for done, outcome in enumerate(race(contestants, cases, rounds=rounds, vocab_size=result.models.vocab_size)):
            taken = probe.call("measure")
            _say(f"round {done} of {rounds}" if done else "warm-up done")
            if done:
                limits.append(taken)
                engines = tuple(with_outcome(entry, outcome) for entry in result.engines)
                yield dataclasses.replace(result, rounds=done, limits=tuple(limits), engines=engines)
    finally:
        probe.close()


def with_outcome(entry: EngineResult, outcome: Outcome) -> EngineResult:
    timings = outcome.timings.get(entry.name, {})
    cases = tuple(CaseTimings(case, tuple(samples)) for case, samples in timings.items())
    return dataclasses.replace(entry, cases=cases, left_out=entry.left_out or outcome.left.get(entry.name))


def race_growth(result: RaceResult, contestants: Mapping[str, RemoteEngine]) -> tuple[GrowthPoint, ...]:
    """Race ours and the best peer over contexts and batches."""
    peer = best_peer(result)
    names = [engine.name for engine in (result.ours, peer) if engine and not engine.left_out]
    cases = fitting(GROWTH_CASES, result.models.context, ("random",))
    _say(f"growth with context and batch: {' and '.join(names)}")
    *_, outcome = race(
        {name: contestants[name] for name in names},
        dict.fromkeys(names, cases),
        rounds=GROWTH_ROUNDS,
        vocab_size=result.models.vocab_size,
    )
    return tuple(GrowthPoint(name, case, tuple(timings)) for name in names for case, timings in outcome.timings[name].items())


def with_memory(result: RaceResult, chosen: Mapping[str, type[Engine]], out: Path, threads: int) -> RaceResult:
    """Add the peak RSS of fresh processes that load and generate: of every engine on the main case, and of every growth point."""
    vocab_size, context = result.models.vocab_size, result.models.context

    def peak(name: str, case: Case) -> int | None:
        engine, prompts = chosen[name], make_prompts(case, vocab_size, 0)
        try:
            return in_fresh_process(generate_once, engine, _folder(engine, out), threads, prompts, case.new_tokens).peak_rss_bytes
        except RuntimeError as error:
            _say(f"no memory figure for {name} on {case}: {one_line(str(error))}")
            return None

    _say("memory of fresh processes")
    engines = tuple(
        engine
        if engine.left_out
        else dataclasses.replace(engine, peak_rss_bytes=peak(engine.name, fitting((MAIN, SHORT), context, ("random",))[0]))
        for engine in result.engines
    )
    growth = tuple(dataclasses.replace(point, peak_rss_bytes=peak(point.engine, point.case)) for point in result.growth)
    return dataclasses.replace(result, engines=engines, growth=growth)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
