"""What the charts of experiments have in common: horizontal bars, a row for each thing that is compared."""

from collections.abc import Sequence

from matplotlib.axes import Axes


def bar(axes: Axes, row: int, width: float, color: str, text: str, *, left: float = 0, end: float | None = None) -> None:
    """Draw a bar and write a text behind it, or behind `end`, where a whisker reaches further."""
    axes.barh(row, width, left=left, height=0.6, color=color)
    place = left + max(width, 0) if end is None else end
    axes.annotate(text, (place, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)


def name_rows(panels: Sequence[Axes], names: Sequence[str], room: float = 0.25) -> None:
    """Name the rows of panels that stand beside each other, from top to bottom; `room` is left for the texts behind the bars."""
    for axes in panels:
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.margins(x=room)
