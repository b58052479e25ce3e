"""Memory over time, from the allocations that torch.profiler records."""

from collections import defaultdict

from gpt2opt.measure.trace_file import Event

MAX_POINTS = 400
"""Of a curve; a chart has no more pixels to tell them apart."""
CPU_TYPE = 0  # of c10::DeviceType

Curve = list[tuple[float, int]]
"""(µs since the first event, bytes more than at that time), a step each."""


def memory_curves(events: list[Event]) -> dict[str, Curve]:
    """Return a curve for each device that something was allocated on: `CPU`, `GPU 0` and so on.

    What was allocated before the recording, such as the weights, is not in it: a curve begins at 0.
    """
    start = min((event["ts"] for event in events), default=0.0)
    sums: dict[str, int] = defaultdict(int)
    curves: dict[str, Curve] = {}
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        device = _device(event)
        sums[device] += event["args"]["Bytes"]
        curves.setdefault(device, [(0.0, 0)]).append((event["ts"] - start, sums[device]))
    return {device: thinned(curve) for device, curve in sorted(curves.items())}


def _device(event: Event) -> str:
    arguments = event["args"]
    return "CPU" if arguments["Device Type"] == CPU_TYPE else f"GPU {arguments['Device Id']}"


def thinned(curve: Curve, points: int = MAX_POINTS) -> Curve:
    """Return at most so many points of a curve, among them the lowest and the highest of each stretch, and both ends."""
    if len(curve) <= points:
        return curve
    stretches = (points - 2) // 2
    inner = curve[1:-1]
    kept = {0, len(curve) - 1}
    for stretch in range(stretches):
        numbers = range(stretch * len(inner) // stretches, (stretch + 1) * len(inner) // stretches)
        if numbers:
            kept |= {1 + min(numbers, key=lambda number: inner[number][1]), 1 + max(numbers, key=lambda number: inner[number][1])}
    return [curve[number] for number in sorted(kept)]
