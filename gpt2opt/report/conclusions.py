"""What each part of the notebook found, in sentences whose words and numbers are chosen from the record."""

import math

from gpt2opt.environment import instructions_label
from gpt2opt.measure.results import Comparison, Memory, Quality
from gpt2opt.measure.stats import PERCENT
from gpt2opt.report.charts import RUNTIMES
from gpt2opt.report.table import Table, table
from gpt2opt.report.tables import NO_DIFFERENCE, differs, megabytes, milliseconds, show_perplexity, show_ratio, with_interval
from gpt2opt.run.record import Record

INT8_TYPES = ("i8", "u8")
AS_GOOD = 1.02
"""A perplexity up to so many times the best one is as good: the notebook lets INT8 lose no more."""
CHANGED = 1.2
"""From this factor between early and late runs of one model on, the machine is said to have changed."""


def conclude_profile(record: Record) -> str:
    """Say what a prompt and a token cost, where the time goes, and how well the model predicts."""
    measured = record.measured("Baseline")
    latency, quality, operators = measured.timed, measured.scored, measured.facts["operator_seconds"]
    slowest, seconds = next(iter(operators.items()))
    lines = [
        f"Reading a prompt of {latency.prompt_tokens} tokens takes {milliseconds(latency.ttft_s)} ms, each further token "
        f"{milliseconds(latency.tpot_s)} ms (p95 {milliseconds(latency.tpot_p95_s)}): {1 / latency.tpot_s:,.0f} tokens/s.",
        f"{slowest} takes {seconds / sum(operators.values()):.0%} of the own time of all operators in the profile; no other takes as much.",
        f"Generating takes {_peak(measured.sized)} at its peak; the weights are {megabytes(measured.sized.weight_bytes)} MB of it.",
        f"The perplexity is {show_perplexity(quality)} over {quality.num_tokens:,} tokens ({PERCENT} interval over documents).",
    ]
    for known in measured.facts["known_perplexities"] or []:
        verdict = known["off"] or "the metric is right"
        lines.append(f"Published is {known['expected']}, found {known['found']:.2f} ({known['protocol']}): {verdict}.")
    return "\n".join(lines)


def conclude_prune(record: Record) -> str:
    """Say how many heads were removed, what that cost, what choosing them by importance was worth, and whether it made anything faster."""
    base, pruned, first = (record.measured(name) for name in ("Baseline", "Pruned", "Pruned, first heads"))
    heads = len(pruned.facts["importance_nats"][0])
    removed = len(next(iter(pruned.facts["pruned_heads"].values()), []))
    total = base.parameters or 0  # None is for IRs alone
    parameters = total - (pruned.parameters or 0)
    turns = _in_turns(record, "Pruned")
    return (
        f"{removed} of {heads} heads were removed per layer: {removed / heads:.1%}, where {record.settings.prune_fraction:.0%} were "
        "asked for, since only whole heads can leave.\n"
        f"These are {parameters:,} of {total:,} parameters, {parameters / total:.1%}.\n"
        f"The perplexity is {_changed(pruned.scored, base.scored)}.\n"
        f"Removing the first heads by index instead, the perplexity is {_changed(first.scored, base.scored)}.\n"
        f"TTFT over the baseline's: {show_ratio(turns.ttft)}; TPOT over the baseline's: {show_ratio(turns.tpot)}."
    )


def conclude_finetune(record: Record) -> str:
    """Say what fine-tuning gained, how much of that any model would have gained, and how much of the cost of pruning came back."""
    base, pruned, tuned, control = (record.measured(name).scored for name in ("Baseline", "Pruned", "Fine-tuned", "Fine-tuned, unpruned"))
    gained, without = _nats(pruned) - _nats(tuned), _nats(base) - _nats(control)
    cost, left = _nats(pruned) - _nats(base), _nats(tuned) - _nats(control)
    lines = [f"Fine-tuning {_gain(tuned, pruned)}; the unpruned control, on the same budget, {_gain(control, base)}."]
    if not (differs(tuned, pruned) and differs(control, base)):
        lines.append("Documents vary so much that not both of these show. What follows compares the two models document by document.")
    elif gained > 0 and without > 0:
        lines.append("Both models learnt from the text, so the gain alone does not show that heads recovered.")
    if (pruned.ratio_interval(base) or (1.0,))[0] > 1:
        share = 1 - left / cost
        lines.append(f"Pruning cost {cost:.4f} nats per token before, {left:.4f} when both are tuned: {share:.0%} of the cost came back.")
    else:
        lines.append("Pruning cost nothing measurable, so no share of it can come back.")
    lines.append(f"Against the tuned control, the perplexity of the tuned pruned model is {_changed(tuned, control)}.")
    return "\n".join(lines)


def conclude_quantize(record: Record) -> str:
    """Say what is INT8, how much smaller and faster that is than the same model in FP32, and what it costs."""
    int8, fp32, naive = (record.measured(name) for name in ("INT8", "FP32", "INT8, naive"))
    audit, turns = int8.facts["audit"], _in_turns(record, "INT8")
    by_gate, divergence = int8.facts["sensitivity"]["float_inputs"], int8.compared.mean_kl
    by_recipe = [name for name in audit["float_inputs"] if name not in by_gate]
    stored, sizes = audit["in_file"], audit["bytes_by_type"]
    in_int8, share = sum(kind in INT8_TYPES for kind in stored.values()), sum(sizes.get(kind, 0) for kind in INT8_TYPES)
    lines = [
        f"{in_int8} of {len(stored)} matmuls have INT8 weights, {share / sum(sizes.values()):.1%} of the file's bytes. The gate left "
        f"these float: {', '.join(by_gate) or 'none'}; by the recipe, the inputs of these stay float: "
        f"{', '.join(by_recipe) or 'none'}. All other inputs are INT8 while a prompt is read.",
        f"The file is {fp32.sized.weight_bytes / int8.sized.weight_bytes:.2f} times smaller than in FP32.",
        f"TTFT over that in FP32: {show_ratio(turns.ttft)}; TPOT over that in FP32: {show_ratio(turns.tpot)}.",
        f"The perplexity is {_changed(int8.scored, fp32.scored)}; on the scored text, the mean KL divergence from FP32 is "
        f"{divergence:.5f} nats per token, and both expect the same token on {int8.compared.top1:.1%} of positions.",
        f"Without smoothing and without the gate, the divergence is {naive.compared.mean_kl:.5f}, "
        f"{naive.compared.mean_kl / divergence:.1f} times as much.",
    ]
    if limited := int8.facts["runs_in_4_gb"]:
        lines.append(f"Under a limit of {limited['limit_bytes'] / 1e9:g} GB of address space {limited['error'] or 'it runs'}.")
    return "\n".join(lines)


def conclude_run(record: Record) -> str:
    """Say in three sentences what the four stages gained and what they cost: size and memory, time, quality."""
    base, pruned, tuned, fp32, int8 = (record.measured(name) for name in ("Baseline", "Pruned", "Fine-tuned", "FP32", "INT8"))
    before, after = base.sized, int8.sized
    size = (
        f"The weights take {megabytes(after.weight_bytes)} MB instead of {megabytes(before.weight_bytes)} MB, "
        f"{before.weight_bytes / after.weight_bytes:.2f} times less, and generating takes {_peak(after)} at its peak instead of "
        f"{_peak(before)}."
    )
    ratio = show_ratio(_in_turns(record, "INT8").tpot)
    time = f"The time for a token over that in FP32, in OpenVINO on the same CPU: {ratio}"
    if base.device == int8.device:
        was, now = base.timed.tpot_s, int8.timed.tpot_s
        time = f"A token takes {milliseconds(now)} ms in OpenVINO instead of {milliseconds(was)} ms in torch; {time[0].lower()}{time[1:]}"
    factors = ", ".join(
        f"{what} {_factor(one.scored, other.scored)}"
        for what, one, other in (("pruning", pruned, base), ("fine-tuning", tuned, pruned), ("INT8", int8, fp32))
    )
    return f"{size}\n{time}.\nThe perplexity is {_changed(int8.scored, base.scored)}; the factors are {factors}."


def conclude_deployment(record: Record) -> str:
    """Say which of the models on the CPU one would deploy there, and why none of the others.

    It is the fastest of those that are as good as the best; the file decides between two that took turns and show no difference.
    """
    models = [m for m in record.measurements() if m.latency and m.quality and m.memory and m.memory.peak_vram_bytes is None]
    best = min(models, key=lambda m: m.scored.perplexity)
    higher = {m.name: m.scored.ratio_to(best.scored) for m in models}
    good = [m for m in models if higher[m.name] <= AS_GOOD]
    fastest = min(good, key=lambda m: (m.timed.tpot_s, m.sized.weight_bytes))
    ties = [{pair.name, pair.base} for pair in record.comparisons() if not pair.tpot.measurable]
    chosen = min((m for m in good if m is fastest or {m.name, fastest.name} in ties), key=lambda m: m.sized.weight_bytes)
    why = "takes the least time" if chosen is fastest else f"is the smallest that shows no difference in time from {fastest.name}"
    lines = [
        f"On a small CPU one would deploy {chosen.name}. Of {len(models)} models on {chosen.device}, {len(good)} have a perplexity of at "
        f"most {AS_GOOD:g} times the lowest ({best.scored.perplexity:.2f}, {best.name}), and of these it {why}: "
        f"{milliseconds(chosen.timed.tpot_s)} ms per token in {RUNTIMES[chosen.runtime]}, {1 / chosen.timed.tpot_s:,.0f} tokens/s. "
        f"It takes {megabytes(chosen.sized.weight_bytes)} MB on disk and {_peak(chosen.sized)} at its peak."
    ]
    for m in (m for m in models if m is not chosen):
        worse = f"its perplexity is {higher[m.name]:.2f} times the lowest; " if m not in good else ""
        time, size = m.timed.tpot_s / chosen.timed.tpot_s, m.sized.weight_bytes / chosen.sized.weight_bytes
        slower = f"a token in {RUNTIMES[m.runtime]} takes {time:.2f} times as long"
        lines.append(f"Not {m.name}: {worse}{slower}, the file is {size:.2f} times as large.")
    return "\n".join(lines)


def explain_cpu_and_gpu(record: Record) -> Table:
    """Show why INT8 on a CPU can take longer than FP16 on a T4: the assignment's six reasons, and what the run measured of each."""
    tuned, fp32, int8 = (record.measured(name) for name in ("Fine-tuned", "FP32", "INT8"))
    audit, turns, timed = int8.facts["audit"], _in_turns(record, "INT8"), int8.timed
    seconds = record.measured("Baseline").facts["operator_seconds"]
    sizes, count, machine = audit["bytes_by_type"], len(audit["in_file"]), record.environment
    prompt, step = (sum(kind in INT8_TYPES for kind, _ in audit[graph].values()) for graph in ("prefill", "decode"))
    floats = 1 - sum(sizes.get(kind, 0) for kind in INT8_TYPES) / sum(sizes.values())
    alone = "one device, so this run says nothing of a GPU" if tuned.device == int8.device else "two devices, so no ratio is taken"
    rows = (
        ("a GPU has thousands of cores, and memory of several times the bandwidth",
         f"a token takes {milliseconds(tuned.timed.tpot_s)} ms in FP16 on {tuned.device}, {milliseconds(timed.tpot_s)} ms in INT8 on "
         f"{int8.device} with {machine['threads']} threads: {alone}"),
        ("its Tensor Cores multiply FP16; INT8 on a CPU does not use them",
         f"{int8.device} multiplied {prompt} of {count} matmuls of a prompt in INT8: TTFT {milliseconds(timed.ttft_s)} ms, in FP32 "
         f"{milliseconds(fp32.timed.ttft_s)} ms"),
        ("not every operator is INT8; values are quantized and dequantized between those that are and those that are not",
         f"{count - prompt} of {count} matmuls of a prompt and {count - step} of a token have float inputs; {floats:.1%} of the file is "
         "not INT8"),
        ("tokens are generated one by one: small matmuls, bound by reading weights and KV cache",
         f"batch {timed.batch_size}: {timed.prompt_tokens / timed.ttft_s:,.0f} tokens/s while a prompt is read at once, "
         f"{1 / timed.tpot_s:,.0f} one by one, each of which reads {megabytes(int8.sized.weight_bytes)} MB of weights"),
        ("large gains of INT8 need VNNI or AMX",
         f"{instructions_label(machine['cpu_flags'])}: TTFT over that in FP32 {show_ratio(turns.ttft)}, TPOT {show_ratio(turns.tpot)}"),
        ("lengths that vary and breaks in the graph keep operators from being fused",
         f"{1 - next(iter(seconds.values())) / sum(seconds.values()):.0%} of the own time of torch's operators is not in "
         f"{next(iter(seconds))}; the p95 of a token is {timed.tpot_p95_s / timed.tpot_s:.2f} times its median in INT8"),
    )  # fmt: skip
    return table(("why INT8 on a CPU can be slower than FP16 on a T4", "what this run measured"), rows)


def _factor(quality: Quality, base: Quality) -> str:
    shown = with_interval(quality.ratio_to(base), quality.ratio_interval(base), ".4f")
    return shown if differs(quality, base) else f"{shown} ({NO_DIFFERENCE})"


def _in_turns(record: Record, name: str) -> Comparison:
    """Return the rounds in which a model was measured first, in turns with its reference model."""
    return next(pair for pair in record.models[name].comparisons() if pair.name == name)


def _peak(memory: Memory) -> str:
    peak, where = (memory.peak_rss_bytes, "RAM") if memory.peak_vram_bytes is None else (memory.peak_vram_bytes, "VRAM")
    return f"an unknown amount of {where}" if peak is None else f"{megabytes(peak)} MB of {where}"


def _nats(quality: Quality) -> float:
    return quality.nll_nats / quality.num_tokens


def _gain(quality: Quality, before: Quality) -> str:
    """Say how many nats per token were gained or lost, with the interval over other documents, and whether that shows a difference."""
    gained, interval = _nats(before) - _nats(quality), quality.ratio_interval(before)
    ends = interval and tuple(sorted(math.copysign(1, gained) * -math.log(end) for end in interval))
    shown = f"{'gained' if gained > 0 else 'lost'} {with_interval(abs(gained), ends, '.3f')} nats per token"
    return shown if differs(quality, before) else f"{shown} ({NO_DIFFERENCE})"


def machine_changes(record: Record) -> str:
    """Say which models took more than a fifth longer in their early runs than in their late ones, or the other way round.

    Such a change is the machine's, not the model's. Runs that stand beside each other in a ratio took turns, so ratios hold all the same.
    """
    lines = []
    for name in record.models:
        halves = [half for latency in record.timings(name) for half in latency.halves]
        for figure, values in (("TTFT", [half.ttft_s for half in halves]), ("TPOT", [half.tpot_s for half in halves])):
            if values and max(values) > CHANGED * min(values):
                lines.append(f"{figure} of {name} lay between {milliseconds(min(values))} and {milliseconds(max(values))} ms")
    if not lines:
        return "Early and late runs of each model differ by less than a fifth."
    return f"The machine changed during the run: {'; '.join(lines)}. Go by the ratios, whose models took turns."


def _changed(quality: Quality, base: Quality) -> str:
    """Say by how much a perplexity differs from another, or that no difference was measurable."""
    interval = quality.ratio_interval(base)
    shown = f"{with_interval(quality.ratio_to(base), interval, '.4f')} times {base.perplexity:.2f}"
    if not differs(quality, base):
        return f"{shown}: {NO_DIFFERENCE}"
    return f"{shown}: it {'rose' if interval[0] > 1 else 'fell'}" if interval else shown
