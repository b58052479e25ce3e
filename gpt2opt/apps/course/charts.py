"""The course's three charts of its dictionary of metrics. They only draw: docs/course.md says what the numbers mean."""

from collections.abc import Mapping

from gpt2opt.report.chart import color

Metrics = Mapping[str, Mapping[str, float]]
"""Name of a stage -> its `latency` in ms per token, its `ppl`, and its `vram` or `ram` in GB."""
STAGES = {"Quant": "INT8"}
"""The first word of a stage's name -> its name in this project's charts, if they differ."""


def plot_latency(metrics: Metrics) -> None:
    """Draw the latency of every stage that has one, in ms per token; raise ValueError if none has."""
    _draw(metrics, {"latency": ("Latency per stage", "Latency (ms/token)")})


def plot_memory_usage(metrics: Metrics) -> None:
    """Print what each stage has, and draw VRAM and RAM in GB, in two charts, since the two can't be compared.

    A VRAM of 0 is that of a machine without a GPU and is not drawn. ValueError: no stage has either.
    """
    for stage, found in metrics.items():
        print(f"{stage}: {', '.join(found)}")
    _draw(metrics, {"vram": ("Peak VRAM", "GB"), "ram": ("Peak RAM of the process", "GB")})


def plot_perplexity(metrics: Metrics) -> None:
    """Draw the perplexity of every stage that has one, upright as the course asks; raise ValueError if none has."""
    _draw(metrics, {"ppl": ("Perplexity per stage", "perplexity")}, upright=True)


def _draw(metrics: Metrics, charts: Mapping[str, tuple[str, str]], upright: bool = False) -> None:
    """Draw one chart for each of these keys of which a stage has a measured value. charts: key -> title and unit."""
    import matplotlib.pyplot as plt

    values = {key: {stage: found[key] for stage, found in metrics.items() if found.get(key)} for key in charts}
    drawn = {key: of for key, of in values.items() if of}
    if not drawn:
        raise ValueError(
            f"no stage of {list(metrics)} has {' or '.join(map(repr, charts))}; expected {{stage: {{{next(iter(charts))!r}: number}}}}"
        )
    most = max(map(len, drawn.values()))
    size = (1.5 + 1.9 * most, 4.2) if upright else (5.5 * len(drawn) + 2, 1 + 0.6 * most)
    _figure, grid = plt.subplots(1, len(drawn), figsize=size, squeeze=False, layout="constrained")
    for axes, (key, of) in zip(grid[0], drawn.items(), strict=True):
        colors = [color(STAGES.get(word, word)) for word in (stage.split(" ")[0] for stage in of)]
        bars = (axes.bar if upright else axes.barh)(list(of), list(of.values()), color=colors)
        axes.bar_label(bars, fmt="%.4g", padding=4)
        axes.margins(**{"y" if upright else "x": 0.15})
        axes.set(title=charts[key][0], **{"ylabel" if upright else "xlabel": f"{charts[key][1]}, less is better"})
        if not upright:
            axes.invert_yaxis()
