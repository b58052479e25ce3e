"""The tree of calls of one trace as a flame graph that a notebook shows: bars of HTML alone, without a script and without a network."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from gpt2opt.measure.call_tree import FRAME, Node
from gpt2opt.measure.trace_file import is_trace
from gpt2opt.report.chart import CONTROL, color
from gpt2opt.report.profile.summary import MODELS, read_calls

MAX_DEPTH, MIN_SHARE, MIN_SHARE_WITH_NAME, MIN_SHARE_IN_WORDS = 12, 0.003, 0.03, 0.05
"""Deeper calls, and those of a smaller share of the time, have no bar, no name in their bar, or no line in the words."""
HINT = "Below each call are the calls that it made. A fuller colour: more of the time is the call's own. Grey: modules and functions."
BOX = "font: 12px/1.6 system-ui, sans-serif; color: #1d1f23; background: #fff; padding: 8px; white-space: nowrap; max-width: 1100px"
BAR = "overflow: hidden; text-overflow: ellipsis; margin: 0 1px 1px 0; padding: 0 4px; border-radius: 2px; background: "


def flame_graph(trace_folder: Path | str) -> "FlameGraph":
    """Return the flame graph of the trace in a folder, such as `traces/1-profile`: of the GPU's time if there is any, else the CPU's.

    Raises:
        ValueError: there is no trace in the folder, or it can't be read.
    """
    folder = Path(trace_folder)
    found = [path for path in sorted(folder.glob("*")) if is_trace(path)]
    if len(found) != 1:
        what = f"traces in {folder}, expected one: a .json or .json.gz file of any name"
        raise ValueError(f"{len(found) or 'no'} {what}; record_trace(work, {str(folder)!r}) writes one")
    *_, root = read_calls(*found)
    return FlameGraph(folder.resolve().name, root, "gpu_us" if root.gpu_us else "cpu_us")


@dataclass(frozen=True, repr=False)
class FlameGraph:
    """Calls as bars, each as wide as the time it took. Calls of one name from one place are one bar. clock: `cpu_us` or `gpu_us`."""

    name: str
    root: Node
    clock: str

    def __repr__(self) -> str:
        """Return the graph in words, for people who can't see it: the title, and a line for each call of at least 5% of the time."""
        model, time = MODELS.get(self.name), f"{self._us(self.root) / 1e3:.3g} ms of {self.clock[:3].upper()} time"
        return "\n".join([f"Flame graph of {f'{model}, ' if model else ''}{self.name}: {time}", *self._lines(self.root, 0)])

    def _repr_html_(self) -> str:
        words = repr(self)
        hint = f'<div style="color: #5d6169; white-space: normal">{HINT}</div>'
        bars = self._bar(self.root, self._us(self.root), 1)
        return f'<div role="img" aria-label="{escape(words)}" style="{BOX}"><b>{escape(words.splitlines()[0])}</b>{hint}{bars}</div>'

    def _us(self, node: Node) -> float:
        return getattr(node, self.clock)

    def _lines(self, node: Node, depth: int) -> Iterator[str]:
        for child in node.children.values():
            if (share := self._us(child) / self._us(self.root)) >= MIN_SHARE_IN_WORDS:
                yield f"{'  ' * depth}{child.name}: {share:.0%}"
                yield from self._lines(child, depth + 1)

    def _bar(self, node: Node, above_us: float, depth: int) -> str:
        us, own_us = self._us(node), getattr(node, f"own_{self.clock}")
        share = us / self._us(self.root)
        if depth > MAX_DEPTH or share < MIN_SHARE:
            return ""
        base = CONTROL if node.kind == FRAME else color(MODELS.get(self.name, ""))
        fill = _mixed_with_white(base, 0.3 + 0.4 * own_us / us)
        tip = f"{node.name}: {us / 1e3:.3g} ms, {share:.1%} of the recording; own {own_us / 1e3:.3g} ms; calls: {node.calls}"
        label = escape(f"{node.name.removeprefix('aten::')} {share:.0%}") if share >= MIN_SHARE_WITH_NAME else "&nbsp;"
        below = "".join(self._bar(child, us, depth + 1) for child in node.children.values())
        return (
            f'<div title="{escape(tip)}" style="width: {us / above_us:.2%}; overflow: hidden"><div style="{BAR}{fill}">{label}</div>'
            f'<div style="display: flex">{below}</div></div>'
        )


def _mixed_with_white(color: str, share: float) -> str:
    channels = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - channel) * share):02x}" for channel in channels)
