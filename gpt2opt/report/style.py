"""What colours mean, in every chart of the project: one meaning each, distinguishable for colour-blind readers too (Okabe and Ito 2008)."""

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
