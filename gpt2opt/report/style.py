"""What colours mean, in every chart of the project: one meaning each, told apart by colour-blind readers too (Okabe and Ito 2008)."""

COLORS = {
    "Baseline": "#0072b2",
    "Pruned": "#e69f00",
    "Fine-tuned": "#009e73",
    "INT8": "#d55e00",
    "FP32": "#666666",
}
"""The models of the stages. FP32 is also the reference that INT8 is held against, and grey is whatever is only compared with."""
CONTROL = "#b3b3b3"
OURS, PEER = COLORS["INT8"], COLORS["FP32"]
"""In races: the INT8 runtime of this project, and the engines that it races."""
FIRST, SECOND = "#56b4e9", "#cc79a7"
"""Two measurements of one thing, beside each other."""


def color(name: str) -> str:
    """Return the colour of a model, that of a control where no stage builds on it."""
    return COLORS.get(name, CONTROL)
