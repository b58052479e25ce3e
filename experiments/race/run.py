"""A fair race of the engines that run GPT-2 on a CPU, beside what the machine can do at best.

Each engine has the same threads, the same prompts and the same number of new tokens. See `measure.turns` for the rounds, `engines` for who
takes part, `results` for what comes out.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from experiments.contract import choose, json_path, now, say, slug, write_json
from experiments.race.engines import ENGINES
from experiments.race.engines.base import Case, Engine, loaded, make_prompts, started, timed_turns
from experiments.race.engines.ours import Ours
from experiments.race.quality import reference_file, write_reference
from experiments.race.results import CASES, MAIN, SHORT, CaseTimings, EngineResult, GrowthPoint, Models, RaceResult, Shape, best_peer
from gpt2opt import environment
from gpt2opt.measure.child import Child, thread_settings
from gpt2opt.measure.limits import Probe
from gpt2opt.measure.memory import ChildRun, in_fresh_process
from gpt2opt.measure.turns import Contestants, LeftError, Outcome, again, one_line
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
"""Memory that stays free beside the loaded engines, for what they need while they work."""
TOO_SLOW = 12
"""An engine that takes this many times as long as ours on its first case would take most of the race: it leaves."""


def run_race(size: str = "gpt2", rounds: int = 5, engines: str = "", out: Path | str = "race") -> RaceResult:
    """Race the engines and write `race.json`, after each round with what there is by then; progress goes to stderr.

    Args:
        size: `gpt2`, `gpt2-medium`, `gpt2-large`, or a directory with a GPT-2. Where there are no real weights, the bundled model is
            stretched to that size; see `stretch_model`.
        rounds: timed rounds; the intervals are over these.
        engines: names as `slug` writes them, with commas between them; all where empty. Ours always races.
        out: folder of the result and of the converted models, which are made again: a new or empty one, or that of an earlier race.

    Raises:
        ValueError: an unknown engine or size, rounds < 1, or `out` can't be written.
    """
    check_whole("rounds", rounds, 1)
    check_size(size)
    check_folder(out)
    names = choose("engine", engines, [engine.name for engine in ENGINES], Ours.name)
    chosen, out = {engine.name: engine for engine in ENGINES if engine.name in names}, claim_folder(out)
    take_lock(out)
    say(f"models: {size}, whole and with {PRUNE_FRACTION:.0%} of the heads pruned, or as near below as whole heads come")
    models = prepare_models(size, out)
    held_out = in_fresh_process(write_reference, out / "models", models.distinct_tokens).value
    entries = [enter(engine, models, out) for engine in chosen.values()]
    starts = {entry.name: started(chosen[entry.name], folder_of(chosen[entry.name], out)) for entry in entries if not entry.left_out}
    ours = [entry for entry in entries if entry.name == Ours.name]
    entries[1:1] = [replace(entry, name=again(entry.name), note="the same as ours, in another process") for entry in ours]
    begun = RaceResult(now(), environment.describe(), size, models, rounds=0, limits=(), engines=tuple(entries), held_out=held_out)
    with Contestants(starts, may_fail=True, reserve_bytes=RESERVE_BYTES) as contestants:
        begun = replace(begun, engines=tuple(map(partial(with_decode, contestants=contestants), begun.engines)))
        say(f"racing, after a warm-up in which some compile: {'; '.join(contestants.names)}")
        for result in race_with_limits(begun, contestants, chosen, rounds):
            write_json(json_path("race", out), result)
        result = replace(result, growth=race_growth(result, contestants))
        write_json(json_path("race", out), result)
        result = with_fidelity(result, contestants, out / "models")
        write_json(json_path("race", out), result)
    result = with_memory(result, chosen, out)
    write_json(json_path("race", out), result)
    return result


def check_size(size: str) -> None:
    """Raise ValueError unless a model can be found or made for this size."""
    if size not in SIZES and not Path(size).is_dir():
        raise ValueError(f"size {size!r} is neither a directory nor one of {', '.join(SIZES)}")


def fitting(cases: Sequence[Case], context: int, texts: Sequence[str]) -> list[Case]:
    """Return the cases of these kinds of text that fit into the context."""
    return [case for case in cases if case.text in texts and case.prompt_tokens + case.new_tokens <= context]


# What runs in fresh processes.


def make_models(size: str, folder: Path) -> Models:
    """Write the model, whole and pruned, into `folder`; find real weights, or stretch the bundled model."""
    environment.quiet()
    from experiments.race.stretch import stretch_model, stretch_tokenizer
    from gpt2opt.prune import prune_attention_heads
    from gpt2opt.sources.gpt2 import heads_per_layer
    from gpt2opt.sources.models import BUNDLED, find_model, load_model

    try:
        found = find_model(size)
        (tokenizer, model), weights, distinct = load_model(found.path), str(found), None
    except ValueError:
        if size not in SIZES:
            raise
        layers, _, width = SIZES[size]
        tokenizer, small = load_model(BUNDLED)
        model, distinct = stretch_model(small, *SIZES[size]), small.config.vocab_size
        tokenizer = stretch_tokenizer(tokenizer, model.config.vocab_size, model.config.n_positions)
        weights = (
            f"the bundled model's, stretched from {small.config.n_layer} × {small.config.n_embd} to {layers} × {width}: channels and units "
            "copied so that the function stays, blocks repeated"
        )
    shapes, heads = [], []
    for part in ("full", "pruned"):
        if part == "pruned":
            prune_attention_heads(model, PRUNE_FRACTION)
        save_model(folder / part, tokenizer, model)
        matmuls = [p.numel() for block in model.transformer.h for p in block.parameters() if p.ndim == 2]
        shapes.append(Shape(sum(matmuls), model.lm_head.weight.numel()))
        heads.append(heads_per_layer(model))
    return Models(weights, heads[0], heads[1], model.config.vocab_size, model.config.n_positions, shapes[0], shapes[1], distinct)


def convert(engine: type[Engine], source: Path, folder: Path) -> str | None:
    """Prepare an engine's folder; return its remark."""
    environment.quiet()
    with new_folder(folder) as partial:
        return engine().prepare(source, partial)


def generate_once(engine: type[Engine], folder: Path, threads: int, prompts: np.ndarray, new_tokens: int) -> None:
    """Load an engine and generate, for the memory that takes."""
    environment.quiet()
    loaded(engine, folder, threads).timed(prompts, new_tokens)


def quantize(source: Path, folder: Path, recipe: str) -> None:
    """Quantize a model by a recipe without the gate, which takes minutes: the time of what comes out depends on shapes and types alone."""
    environment.quiet()
    from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
    from gpt2opt.settings import MIN_CALIBRATION_SEQUENCES
    from gpt2opt.sources.models import load_model
    from gpt2opt.sources.texts import find_texts

    tokenizer, model = load_model(source)
    texts = [document.text for document in find_texts().calibration]
    rows = prepare_calibration_dataset(texts, tokenizer, length=128, limit=MIN_CALIBRATION_SEQUENCES)
    quantize_int8(model, tokenizer, rows, folder, recipe)


# The steps of a run, in order.


def prepare_models(size: str, out: Path) -> Models:
    """Write both models in a fresh process, see `make_models`; those that an earlier race converted are removed."""
    for earlier in (out / "models").glob("*"):
        remove_folder(earlier)
    return in_fresh_process(make_models, size, out / "models").value


def enter(engine: type[Engine], models: Models, out: Path, part: str | None = None) -> EngineResult:
    """Convert a model, `full` or `pruned`, for one engine, by default the pruned one if it can run that.

    An engine that is not installed or fails is left out, with the reason.
    """
    part = part or ("full" if engine.full_heads else "pruned")
    result = EngineResult(
        engine.name, engine.package, engine.version(), engine.note, engine.full_heads, getattr(models, part),
        engine.block_bytes, engine.head_bytes,
    )  # fmt: skip
    if result.version is None:
        return replace(result, left_out=f"{engine.package} is not installed")
    try:
        folder, done = prepare(engine, out, part)
    except (RuntimeError, OSError) as error:
        return replace(result, left_out=f"failed: {one_line(error)}")
    note = "; ".join(filter(None, (engine.note, done.value)))
    return replace(result, note=note, disk_bytes=engine.disk_bytes(folder), prepare_peak_rss_bytes=done.peak_rss_bytes)


def prepare(engine: type[Engine], out: Path, part: str) -> tuple[Path, ChildRun]:
    """Convert the model for an engine into a folder; what it is made from is made first, unless this run has it already."""
    source = out / "models" / part
    if engine.made_from:
        source = folder_of(engine.made_from, out)
        if not engine.made_from.disk_bytes(source):
            prepare(engine.made_from, out, part)
    folder, begun = folder_of(engine, out), time.monotonic()
    say(f"preparing {engine.name}{f' ({engine.note})' if engine.note else ''} …")
    done = in_fresh_process(convert, engine, source, folder)
    say(f"… in {time.monotonic() - begun:.0f} s{f'; {done.value}' if done.value else ''}")
    return folder, done


def folder_of(engine: type[Engine], out: Path) -> Path:
    """Return where an engine's files are."""
    return out / "models" / slug(engine.name)


def race_with_limits(result: RaceResult, contestants: Contestants, chosen: Mapping[str, type[Engine]], rounds: int) -> Iterator[RaceResult]:
    """Race, and yield the result so far after every round; the limits of the machine are measured then too, under the same load."""
    cases = {name: fitting(CASES, result.models.context, engine.texts) for name, engine in chosen.items()}
    turns = timed_turns(contestants, cases, rounds, result.models.vocab_size, too_slow=TOO_SLOW)
    threads, limits = environment.threads(), []
    with Child(Probe, threads, environment=thread_settings(threads)) as probe:
        for done, outcome in enumerate(turns):
            taken = probe.call("measure")
            say(f"round {done} of {rounds}" if done else "warm-up done")
            if done:
                limits.append(taken)
                engines = tuple(with_outcome(entry, outcome, contestants.left) for entry in result.engines)
                yield replace(result, rounds=done, limits=tuple(limits), engines=engines)


def with_outcome(entry: EngineResult, outcome: Outcome, left: Mapping[str, str]) -> EngineResult:
    cases = tuple(CaseTimings(case, tuple(samples)) for case, samples in outcome.samples.get(entry.name, {}).items())
    return replace(entry, cases=cases, left_out=entry.left_out or left.get(entry.name))


def with_decode(entry: EngineResult, contestants: Contestants) -> EngineResult:
    """Add what an engine decodes by, where it says so."""
    if entry.name not in contestants.names:
        return entry
    with suppress(LeftError):
        return replace(entry, decode=contestants.call(entry.name, "decodes_by"))
    return entry


def with_fidelity(result: RaceResult, contestants: Contestants, models: Path) -> RaceResult:
    """Add how near each engine is to torch FP32, unless the weights are such that this says nothing."""

    def measured(entry: EngineResult) -> EngineResult:
        if entry.name not in contestants.names or not entry.timings(SHORT):
            return entry
        try:
            file = reference_file(models, "full" if entry.full_heads else "pruned")
            return replace(entry, fidelity=contestants.call(entry.name, "fidelity", file))
        except LeftError:
            return replace(entry, note=f"{entry.note}; quality not measured: {contestants.left[entry.name]}")

    if not (result.held_out and result.held_out.says_something):
        return result
    say("quality")
    return replace(result, engines=tuple(map(measured, result.engines)))


def race_growth(result: RaceResult, contestants: Contestants) -> tuple[GrowthPoint, ...]:
    """Race ours and the best peer over contexts and batches."""
    peer = best_peer(result)
    names = [engine.name for engine in (result.ours, peer) if engine and not engine.left_out]
    cases = dict.fromkeys(names, fitting(GROWTH_CASES, result.models.context, ("random",)))
    say(f"growth with context and batch: {' and '.join(names)}")
    *_, outcome = timed_turns(contestants, cases, GROWTH_ROUNDS, result.models.vocab_size)
    return tuple(GrowthPoint(name, case, tuple(taken)) for name, found in outcome.samples.items() for case, taken in found.items())


def with_memory(result: RaceResult, chosen: Mapping[str, type[Engine]], out: Path) -> RaceResult:
    """Add the peak RSS of fresh processes that load and generate: of every engine on the main case, and of every growth point."""
    vocab_size, context = result.models.vocab_size, result.models.context

    def peak(name: str, case: Case) -> int | None:
        if name not in chosen:  # ours again, whose files are those of ours
            return None
        engine, prompts = chosen[name], make_prompts(case, vocab_size, 0)
        try:
            work = generate_once, engine, folder_of(engine, out), environment.threads(), prompts, case.new_tokens
            found = in_fresh_process(*work, python=engine.python())
        except RuntimeError as error:
            say(f"no memory figure for {name} on {case}: {one_line(error)}")
            return None
        return found.peak_rss_bytes

    say("memory of fresh processes")
    main = fitting((MAIN, SHORT), context, ("random",))[0]
    engines = tuple(each if each.left_out else replace(each, peak_rss_bytes=peak(each.name, main)) for each in result.engines)
    growth = tuple(replace(point, peak_rss_bytes=peak(point.engine, point.case)) for point in result.growth)
    return replace(result, engines=engines, growth=growth)
