"""A chart as a notebook shows it: a picture, and its words for those who can't see it; and what colours mean in every chart.

Colours have one meaning each, distinguishable for colour-blind readers too (Okabe and Ito 2008).
"""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLORS = {
    "Baseline": "#0072b2",
    "Pruned": "#e69f00",
    "Fine-tuned": "#009e73",
    "INT8": "#d55e00",
    "FP32": "#666666",
}
"""The models of the stages. FP32 is also the reference of INT8, and grey is whatever is only compared with."""
CONTROL = "#b3b3b3"
OUR_ENGINE, PEER_ENGINE = COLORS["INT8"], COLORS["FP32"]
"""In races: the INT8 runtime of this project, and the engines that it races."""
OUR_ENGINE_PALE, PEER_ENGINE_PALE = "#f2b48a", CONTROL
"""The same with all heads."""
FIRST, SECOND = COLORS["INT8"], "#f2b48a"
"""Two measurements of INT8, beside each other."""
BETTER, WORSE, SAME, WHOLE = "#56b4e9", "#cc79a7", "#808080", "#d9d9d9"
"""What a step changes for the better or the worse, what it does not measurably change, and the whole."""


def color(name: str) -> str:
    """Return the colour of a model, that of a control where no stage builds on it."""
    return COLORS.get(name, CONTROL)


class Chart(list["Axes"]):
    """The axes of one figure. As the last value of a notebook's cell it is drawn, with alternative text; see `describe`."""

    @property
    def figure(self) -> "Figure":
        figure = self[0].get_figure(root=True)
        assert figure
        return figure

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        import matplotlib.pyplot as plt

        picture = io.BytesIO()
        self.figure.savefig(picture, format="png")
        plt.close(self.figure)  # a notebook would draw every open figure once more, below the cell
        words = describe(self.figure)
        return {"image/png": picture.getvalue(), "text/plain": words}, {"image/png": {"alt": words}}


def describe(figure: "Figure") -> str:
    """Return what is written in a figure, as one text for people who can't see it: titles, and each row or entry with its value."""
    said, rows = [figure.get_suptitle()], list[str]()
    for axes in figure.axes:
        written = [text.get_text() for text in axes.texts if text.get_text()]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        rows = labels if any(labels) else rows  # panels beside each other name their rows once
        if len(written) == len(rows):
            written = [f"{row}: {value}" for row, value in zip(rows, written, strict=True)]
        legend = axes.get_legend()
        entries = [text.get_text() for text in legend.get_texts()] if legend else []
        said += [": ".join(filter(None, (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))), *written, *entries]
    said.append(figure.get_supxlabel())
    return "; ".join(" ".join(part.split()) for part in said if part)
