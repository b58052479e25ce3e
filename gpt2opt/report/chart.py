"""A chart as a notebook shows it: a picture, and its words for those who can't see it."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
