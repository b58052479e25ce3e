"""The course's three charts of its dictionary of metrics. They only draw: docs/course.md says what the numbers mean."""

from collections.abc import Mapping

from gpt2opt.report.chart import color

Metrics = Mapping[str, Mapping[str, float]]
"""Name of a stage -> its `latency` in ms per token, its `ppl`, and its `vram` or `ram` in GB."""
STAGES = {"Quant": "INT8"}
"""The first word of a stage's name -> its name in this project's charts, if they differ."""


def plot_latency(metrics: Metrics) -> None:
    """Draw the latency of every stage that has one, in ms per token; raise ValueError if none has."""
    _draw(metrics, {"latency": ("Latency per stage", "Latency (ms/token), less is better")})


def plot_memory_usage(metrics: Metrics) -> None:
    """Draw VRAM and RAM in GB, in two charts, since the two can't be compared; raise ValueError if no stage has either."""
    _draw(metrics, {"vram": ("Peak VRAM", "GB, less is better"), "ram": ("Peak RAM of the process", "GB, less is better")})


def plot_perplexity(metrics: Metrics) -> None:
    """Draw the perplexity of every stage that has one; raise ValueError if none has."""
    _draw(metrics, {"ppl": ("Perplexity per stage", "perplexity, less is better")})


def _draw(metrics: Metrics, charts: Mapping[str, tuple[str, str]]) -> None:
    """Draw one chart for each of these keys that a stage has. charts: key -> title and unit."""
    import matplotlib.pyplot as plt

    values = {key: {stage: found[key] for stage, found in metrics.items() if key in found} for key in charts}
    drawn = {key: of for key, of in values.items() if of}
    if not drawn:
        raise ValueError(
            f"no stage of {list(metrics)} has {' or '.join(map(repr, charts))}; expected {{stage: {{{next(iter(charts))!r}: number}}}}"
        )
    size = (5.5 * len(drawn) + 2, 1 + 0.6 * max(map(len, drawn.values())))
    _figure, grid = plt.subplots(1, len(drawn), figsize=size, squeeze=False, layout="constrained")
    for axes, (key, of) in zip(grid[0], drawn.items(), strict=True):
        words = [stage.split(" ")[0] for stage in of]
        bars = axes.barh(list(of), list(of.values()), color=[color(STAGES.get(word, word)) for word in words])
        axes.bar_label(bars, fmt="%.3g", padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=charts[key][0], xlabel=charts[key][1])
