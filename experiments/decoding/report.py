"""The tables, the charts and the caption of the decoding experiment."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from experiments.contract import Experiment, Finding, columns, decide, findings_table, not_measured
from experiments.decoding.methods import GREEDY, METHODS, SAMPLING
from experiments.decoding.results import ITSELF, Decoding, ModelResult, Trial, exponential, mean, share, slower_than_greedy
from experiments.decoding.run import compare_decoding
from experiments.decoding.trial import METHOD, NEW_TOKENS, PROMPT
from gpt2opt.environment import machine_label
from gpt2opt.measure.stats import PERCENT, Estimate, median, over_documents, paired_ratio, ratio_of_medians
from gpt2opt.measure.turns import again
from gpt2opt.report.chart import COLORS, CONTROL
from gpt2opt.report.tables import MISSING, Table, milliseconds, table, with_interval

SMALL, MEDIUM, LARGE = "gpt2", "gpt2-medium", "gpt2-large"
REAL_SIZES = f"the real {MEDIUM} and {LARGE}"
LOOP_MOST = 1.03
TRIED = f"The fixed-prompt trial, “{PROMPT}” and {NEW_TOKENS} new tokens by {METHOD} sampling"
DRASTIC_NATS = 0.1
"""An INT8 to which the text itself costs this many nats per token more, a tenth more perplexity, has another quality."""
BEYOND = f"neither confirmed nor refuted: the interval reaches beyond {DRASTIC_NATS} nats"


def find_all(result: Decoding) -> list[Finding]:
    coherent = [finding for model in result.writers for finding in sampling_is_coherent(model)]
    tried = [finding for model, trial in result.tried for finding in dynamic_int8_gains(model, trial)]
    return [*coherent, medium_is_balanced(result), *larger_is_slower(result), *tried]


def dynamic_int8_gains(model: ModelResult, trial: Trial) -> Iterator[Finding]:
    """Ask if dynamic INT8 is faster than FP32 behind one prompt and, where the weights are trained, if it is nearly as good."""
    ratio = paired_ratio(trial.int8_s, trial.fp32_s)
    figure = f"time ÷ that of FP32 with the same seeds: {ratio}; of FP32 again: {paired_ratio(trial.again_s, trial.fp32_s)}"
    yield Finding(f"dynamic INT8 with sampling is faster than FP32 ({model.name})", decide(ratio.high < 1, ratio.low > 1), figure)
    if trial.more_nats:
        more = mean(trial.more_nats)
        claim = f"dynamic INT8 does not drastically impact quality (less than {DRASTIC_NATS} nats, {model.name})"
        figure = f"the text itself costs it {more:+.3f} nats per token more than FP32"
        open_still = more.low <= DRASTIC_NATS <= more.high
        yield Finding(claim, BEYOND if open_still else decide(more.high < DRASTIC_NATS, more.low > DRASTIC_NATS), figure)


def sampling_is_coherent(model: ModelResult) -> list[Finding]:
    """Compare the mean of all methods that sample with greedy decoding, prompt by prompt: repetition, and what the prompt explains.

    What it explains is asked of the judge alone. To the model that wrote a text its prompt explains it in any case; see `FIGURES`.
    """
    methods = [method for method in model.methods if method in SAMPLING]
    repeats, coherent = f"sampling repeats itself less ({model.name})", f"sampling is more coherent ({model.name})"
    if not methods:
        return not_measured("a method that samples", repeats, coherent)

    def gain(figure: str) -> Estimate:
        sampled = np.mean([model.by_prompt(method, figure) for method in methods], axis=0)
        return mean(sampled - model.by_prompt(GREEDY, figure))

    less, nll = gain("rep4"), gain("nll")
    cost = f"the texts cost {nll:+.2f} nats per token more under the model that wrote them"
    verdict, figure = "not judged here: needs a second model that writes, with the same vocabulary", cost
    if model.judge:
        more, itself = gain("explained_to_judge"), mean(model.by_prompt(ITSELF, "explained_to_judge")).value
        verdict = decide(more.low > 0, more.high < 0)
        figure = (
            f"to {model.judge} the prompt explains {more:+.2f} nats per token more than with greedy (of the text itself it explains "
            f"{itself:.2f}); {cost}"
        )
    repetition = f"rep-4 of {len(methods)} sampling methods − greedy: {less.scaled(100):+.1f} points"
    return [Finding(repeats, decide(less.high < 0, less.low > 0), repetition), Finding(coherent, verdict, figure)]


def medium_is_balanced(result: Decoding) -> Finding:
    """Ask if the step to gpt2-medium gains more nats per doubling of the time than the next step does, on the text itself."""
    claim = "gpt2-medium is the best balance of speed and quality"
    sizes = [result.model(name) for name in (SMALL, MEDIUM, LARGE)]
    real = [model for model in sizes if model and model.texts]
    if len(real) < 3:
        return replace(not_measured(REAL_SIZES, claim)[0], figure=_speeds([model for model in sizes if model]))
    (small, medium, large), costs = real, [model.by_prompt(ITSELF, "nll") for model in real]
    first, second = (math.log2(_slower(*pair).value) for pair in ((medium, small), (large, medium)))
    ones = np.ones(len(costs[0]))
    better = over_documents(
        lambda one, two, three, count: ((one - two) / first - (two - three) / second) / count, *costs, ones, tokens=ones
    )
    figure = f"nats per token gained for each doubling of the time, to {MEDIUM} − to {LARGE}: {better:+.2f}"
    return Finding(claim, decide(better.low > 0, better.high < 0), f"{figure}; {_speeds(real)}")


def larger_is_slower(result: Decoding) -> list[Finding]:
    slower, no_better = "larger models are slower", "larger models are not much better"
    sizes = [model for name in (SMALL, MEDIUM, LARGE) if (model := result.model(name))]
    if len(sizes) < 2:
        return not_measured(REAL_SIZES, slower, no_better)
    ratio = _slower(sizes[-1], sizes[0])
    found = Finding(slower, decide(ratio.low > 1, ratio.high < 1), _speeds(sizes))
    real = [model for model in sizes if model.texts]
    if len(real) < 2:
        return [found, *not_measured(REAL_SIZES, no_better)]
    gain = mean(real[0].by_prompt(ITSELF, "nll") - real[-1].by_prompt(ITSELF, "nll"))
    figure = f"the text itself costs {real[-1].name} {gain:+.2f} nats per token less than {real[0].name}"
    return [found, Finding(no_better, decide(gain.low <= 0, gain.low > 0), figure)]


def _slower(model: ModelResult, base: ModelResult) -> Estimate:
    """Return the ratio of the times of greedy decoding; the models were timed one after the other, so the samples are not paired."""
    return ratio_of_medians(model.seconds(GREEDY), base.seconds(GREEDY))


def _speeds(models: Sequence[ModelResult]) -> str:
    if len(models) < 2:
        return ""
    stand_ins = [model.name for model in models if model.stand_in]
    named = f" (random weights instead of {', '.join(stand_ins)})" if stand_ins else ""
    ratios = ", ".join(f"{model.name} {_slower(model, models[0])}" for model in models[1:])
    return f"time ÷ that of {models[0].name}, {median(models[0].seconds(GREEDY)).value:.2f} s: {ratios}{named}"


def texts_table(model: ModelResult) -> Table:
    """Show repetition, diversity, perplexity, and what the prompt explains, of every method and of the text itself."""
    return columns(
        (ITSELF, *model.methods),
        {
            "method": str,
            "rep-2": lambda method: f"{model.by_prompt(method, 'rep2').mean():.1%}",
            f"rep-4 [{PERCENT}]": lambda method: with_interval(*share(model.by_prompt(method, "rep4")), ".1%"),
            "distinct-1": lambda method: f"{model.distinct(method, 1):.3f}",
            "distinct-2": lambda method: f"{model.distinct(method, 2):.3f}",
            f"perplexity [{PERCENT}]": lambda method: str(exponential(mean(model.by_prompt(method, "nll")))),
            f"prompt explains to the writer, nats [{PERCENT}]": lambda method: str(mean(model.by_prompt(method, "explained"))),
        },
    )


def paired_table(model: ModelResult) -> Table:
    """Show every method compared with greedy decoding, paired by prompt (texts) or by round (times)."""

    def more(method: str, figure: str) -> Estimate:
        return mean(model.by_prompt(method, figure) - model.by_prompt(GREEDY, figure))

    return columns(
        [method for method in model.methods if method != GREEDY],
        {
            "method against greedy": str,
            f"rep-4, difference [{PERCENT}]": lambda method: f"{more(method, 'rep4'):+.1%}",
            f"perplexity, ratio [{PERCENT}]": lambda method: str(exponential(more(method, "nll"))),
            f"prompt explains to the writer, difference [{PERCENT}]": lambda method: f"{more(method, 'explained'):+.2f}",
            f"time, ratio [{PERCENT}]": lambda method: str(slower_than_greedy(model, method)),
        },
    )


def speed_table(result: Decoding) -> Table:
    """Show the new tokens per second of every method on every model, prefill included, and the time against greedy."""
    rows = []
    for method in (*result.models[0].methods, again(GREEDY)):
        cells = []
        for model in (model for model in result.models if method in [taken.method for taken in model.times]):
            seconds = statistics.median(model.seconds(method))
            shown = f"{result.timed_new_tokens / seconds:.1f} tokens/s"
            cells.append(shown if method == GREEDY else f"{shown}; {slower_than_greedy(model, method)}")
        rows += [(method, *cells)] if cells else []
    return table(("method; time ÷ greedy", *(_labelled(model) for model in result.models)), rows)


def loop_table(result: Decoding) -> Table:
    """Show what the generation loop adds to the time per token of our INT8 runtime."""
    loop = result.loop
    loops = {"plain loop (`Greedy`)": loop.plain_s, again("plain loop"): loop.again_s, "generation loop (`stream`, greedy)": loop.loop_s}
    return columns(
        [(name, taken) for name, taken in loops.items() if taken],
        {
            "INT8 IR driven by the": lambda row: row[0],
            "TPOT, ms": lambda row: milliseconds(median(row[1]).value),
            f"÷ plain loop [{PERCENT}]": lambda row: MISSING if row[1] is loop.plain_s else f"{paired_ratio(row[1], loop.plain_s):.3f}",
        },
    )


def trial_table(result: Decoding) -> Table:
    """Show the seconds that each size took behind the fixed prompt, in FP32 and in dynamic INT8."""
    return columns(
        result.tried,
        {
            "model": lambda row: _labelled(row[0]),
            "FP32, s": lambda row: f"{median(row[1].fp32_s).value:.3g}",
            "dynamic INT8, s": lambda row: f"{median(row[1].int8_s).value:.3g}",
            "from, to": lambda row: f"{min(row[1].int8_s):.3g}, {max(row[1].int8_s):.3g}",
            f"INT8 ÷ FP32 [{PERCENT}]": lambda row: str(paired_ratio(row[1].int8_s, row[1].fp32_s)),
            f"FP32 again ÷ FP32 [{PERCENT}]": lambda row: str(paired_ratio(row[1].again_s, row[1].fp32_s)),
            "trials": lambda row: str(len(row[1].int8_s)),
        },
    )


def trial_texts_table(trial: Trial) -> Table:
    """Show what dynamic INT8 wrote in each trial, and in how many seconds."""
    rows = zip(trial.int8_s, trial.texts, strict=True)
    return table(("seed", "s", "text"), [(str(seed), f"{taken:.3g}", _in_one_line(text)) for seed, (taken, text) in enumerate(rows, 1)])


def samples_table(result: Decoding) -> Table:
    """Show what the methods write behind the first prompt; of a method that draws, its first draw."""
    rows = []
    for model in result.writers:
        rows.append((f"{model.name}: prompt 1", _in_one_line(result.prompts[0])))
        rows += [(method, _in_one_line(model.outputs(method)[0].text)) for method in (ITSELF, *model.methods)]
    return table(("method", "text"), rows)


def all_tables(result: Decoding) -> dict[str, Table]:
    tables = {"Claims of the project GPT2_Task on methods and sizes": findings_table(find_all(result))}
    for model in result.writers:
        tables[f"What the methods write: {_labelled(model)}"] = texts_table(model)
        tables[f"Each method against greedy, paired: {_labelled(model)}"] = paired_table(model)
    if result.tried:
        tables[f"{TRIED}, seconds"] = trial_table(result)
    tables |= {f"{TRIED}: {_labelled(model)}": trial_texts_table(trial) for model, trial in result.tried if trial.texts}
    return tables | {
        "Speed of every method on every model": speed_table(result),
        f"What our generation loop costs: {result.loop_model}": loop_table(result),
        "Samples": samples_table(result),
    }


def caption(result: Decoding) -> str:
    """Say what was measured on what, and what was replaced by what."""
    methods = ", ".join(f"{method} ({_settings(method)})" for method in result.models[0].methods)
    models = "; ".join(f"{model.name}: {model.weights}, {model.parameters / 1e6:.0f} M parameters" for model in result.models)
    sampling = [method for method in result.models[0].methods if method in SAMPLING]
    ratio = paired_ratio(result.loop.loop_s, result.loop.plain_s)
    within = "within" if ratio.high <= LOOP_MOST else "above" if ratio.low > LOOP_MOST else "not measurably on either side of"
    return "\n\n".join(
        (
            f"{len(result.prompts)} prompts of {result.prompt_tokens} tokens from the held-out part of {result.text}; {result.new_tokens} "
            f"new tokens each, {result.draws} draws by methods that sample ({', '.join(sampling)}), one text by the others. All models run "
            f"in FP32 in torch. Methods: {methods}.",
            f"Models: {models}.",
            "rep-n is the share of a text's n-grams that it had before; distinct-n is the share of different n-grams among those of all "
            "texts. Perplexity is that of the new tokens behind their prompt under the FP32 model that wrote them. A low one is not a good "
            f"one: the row `{ITSELF}` shows where people are. What the prompt explains to the writer "
            "is the NLL behind an end-of-text minus the NLL behind the prompt, under the model that wrote the text. It is above 0 for all "
            "that a model draws, even with random weights, and says nothing about coherence; only another model can judge that.",
            f"Times are of whole generations of one prompt of {result.timed_prompt_tokens} tokens, {result.timed_new_tokens} new "
            f"ones, prefill included, in turns. The generation loop takes {ratio:.3f} times as long "
            f"per token as the plain loop: {within} the {LOOP_MOST - 1:.0%} that are allowed. Measured on "
            f"{machine_label(result.environment)}.",
        )
    )


def plot_decoding(result: Decoding) -> list[Axes]:
    """Draw, for each model that writes, perplexity over repetition and over the time per token; whiskers are intervals."""
    writers = result.writers
    figure, grid = plt.subplots(len(writers), 2, figsize=(13, 5.2 * len(writers)), layout="constrained", squeeze=False, sharey="row")
    for (repeats, times), model in zip(grid, writers, strict=True):
        for number, method in enumerate((ITSELF, *model.methods)):
            style = _style(method, number)
            quality = exponential(mean(model.by_prompt(method, "nll")))
            value, interval = share(model.by_prompt(method, "rep4"))
            _point(repeats, Estimate(value, *(interval or (value, value))).scaled(100), quality, method, style)
            if method != ITSELF:
                _point(times, median(model.seconds(method)).scaled(1e3 / result.timed_new_tokens), quality, method, style)
        times.axhline(exponential(mean(model.by_prompt(ITSELF, "nll"))).value, color="black", linestyle=":", linewidth=1)
        repeats.set(title=f"{model.name}: perplexity and repetition", xlabel="rep-4, %", ylabel="perplexity, logarithmic")
        times.set(title=f"{model.name}: perplexity and time", xlabel="ms per token, prefill included; dotted: the text itself")
        repeats.set_yscale("log")
        for axes in (repeats, times):
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:.0f}")
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        repeats.legend(fontsize=8)
    figure.suptitle(f"Decoding methods; {'; '.join(_labelled(model) for model in writers)}; intervals: {PERCENT} over prompts or rounds")
    return list(grid.flat)


def _style(method: str, number: int) -> dict:
    if method == ITSELF:
        return {"color": "black", "marker": "*", "markersize": 13}
    own = COLORS["Baseline"] if method in SAMPLING else CONTROL if method == GREEDY else COLORS["Pruned"]
    return {"color": own, "marker": "ov^s<Dp>XP"[number], "markersize": 8}


def _point(axes: Axes, x: Estimate, y: Estimate, label: str, style: dict) -> None:
    axes.errorbar(x.value, y.value, xerr=x.reach, yerr=y.reach, label=label, linestyle="none", elinewidth=0.8, **style)


def _labelled(model: ModelResult) -> str:
    return f"{model.name} (stand-in)" if model.stand_in else model.name


def _settings(method: str) -> str:
    return ", ".join(f"{name}={value}" for name, value in METHODS[method].items() if name != "do_sample") or "the most probable token"


def _in_one_line(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


EXPERIMENT = Experiment(
    Decoding, compare_decoding, all_tables, charts=lambda result: {"decoding": plot_decoding(result)[0].figure}, caption=caption
)
