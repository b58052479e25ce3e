"""The course's three charts of its dictionary of metrics. They only draw: what the numbers mean is told in docs/course.md."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpt2opt.report.style import color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Metrics = Mapping[str, Mapping[str, float]]
"""Name of a stage -> its `latency` in ms per token, its `ppl`, and its `vram` or `ram` in GB."""
STAGES = {"Quant": "INT8"}
"""The first word of a stage's name -> its name in this project's charts, where they differ."""


def plot_latency(metrics: Metrics) -> None:
    """Draw the latency of every stage that has one, in ms per token.

    Raises:
        ValueError: no stage has one.
    """
    _draw(metrics, {"latency": ("Latency per stage", "Latency (ms/token), less is better")})


def plot_memory_usage(metrics: Metrics) -> None:
    """Draw VRAM and RAM in GB, each of the stages that have it: two charts, since the two can't be compared.

    Raises:
        ValueError: no stage has either.
    """
    _draw(metrics, {"vram": ("Peak VRAM", "GB, less is better"), "ram": ("Peak RAM of the process", "GB, less is better")})


def plot_perplexity(metrics: Metrics) -> None:
    """Draw the perplexity of every stage that has one.

    Raises:
        ValueError: no stage has one.
    """
    _draw(metrics, {"ppl": ("Perplexity per stage", "perplexity, less is better")})


def _draw(metrics: Metrics, charts: Mapping[str, tuple[str, str]]) -> None:
    """Draw one chart for each of these keys that a stage has."""
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
        _bars(axes, of, *charts[key])


def _bars(axes: "Axes", values: Mapping[str, float], title: str, unit: str) -> None:
    words = [stage.split(" ")[0] for stage in values]
    bars = axes.barh(list(values), list(values.values()), color=[color(STAGES.get(word, word)) for word in words])
    axes.bar_label(bars, fmt="%.3g", padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title=title, xlabel=unit)
