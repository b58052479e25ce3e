"""What each part of the notebook found, in sentences whose words and numbers are chosen from the record."""

from gpt2opt.measure.results import Memory, Quality
from gpt2opt.record import FINETUNE, PROFILE, PRUNE, QUANTIZE, Record
from gpt2opt.report.tables import megabytes, milliseconds, perplexity_ratio, show_perplexity, show_ratio
from gpt2opt.stats import PERCENT


def conclude_profile(record: Record) -> str:
    """Say what a prompt and a token cost, where the time goes, and how well the model predicts."""
    measured = record.stage(PROFILE).measurement
    latency, quality, operators = measured.latency, measured.quality, measured.facts["operator_seconds"]
    slowest, seconds = next(iter(operators.items()))
    lines = [
        f"Reading a prompt of {latency.prompt_tokens} tokens takes {milliseconds(latency.ttft_s)} ms, each further token "
        f"{milliseconds(latency.tpot_s)} ms (p95 {milliseconds(latency.tpot_p95_s)}).",
        f"{slowest} takes {seconds / sum(operators.values()):.0%} of the own time of all operators in the profile; no other takes as much.",
        f"Generating takes {_peak(measured.memory)} at its peak; the weights are {megabytes(measured.memory.weight_bytes)} MB of it.",
        f"The perplexity is {show_perplexity(quality)} over {quality.num_tokens:,} tokens ({PERCENT} interval over documents).",
    ]
    for known in measured.facts["known_perplexities"] or []:
        verdict = known["off"] or "the metric is right"
        lines.append(f"Published is {known['expected']}, found {known['found']:.2f} ({known['protocol']}): {verdict}.")
    return "\n".join(lines)


def conclude_prune(record: Record) -> str:
    """Say how many heads were removed, what that cost, what choosing them by importance was worth, and whether it made anything faster."""
    base, stage = record.measured("Baseline"), record.stage(PRUNE)
    pruned, first = stage.measurement, stage.control("Pruned, first heads")
    heads = len(pruned.facts["importance_nats"][0])
    removed = len(next(iter(pruned.facts["pruned_heads"].values()), []))
    parameters = base.parameters - pruned.parameters
    turns = stage.comparisons[0]
    return "\n".join(
        [
            f"{removed} of {heads} heads were removed per layer: {removed / heads:.1%}, where {record.settings.prune_fraction:.0%} were "
            "asked for, since only whole heads can leave.",
            f"These are {parameters:,} of {base.parameters:,} parameters, {parameters / base.parameters:.1%}.",
            f"The perplexity is {_changed(pruned.quality, base.quality)}.",
            f"Removing the first heads by index instead, the perplexity is {_changed(first.quality, base.quality)}.",
            f"TTFT over the baseline's: {show_ratio(turns.ttft)}; TPOT over the baseline's: {show_ratio(turns.tpot)}.",
        ]
    )


def conclude_finetune(record: Record) -> str:
    """Say what fine-tuning gained, how much of that any model would have gained, and how much of the cost of pruning came back."""
    base, pruned, stage = record.measured("Baseline").quality, record.measured("Pruned").quality, record.stage(FINETUNE)
    tuned, control = stage.measurement.quality, stage.control("Fine-tuned, unpruned").quality
    gained, without = _nats(pruned) - _nats(tuned), _nats(base) - _nats(control)
    cost, left = _nats(pruned) - _nats(base), _nats(tuned) - _nats(control)
    verb = "gained" if gained > 0 else "lost"
    lines = [
        f"Fine-tuning {verb} {abs(gained):.3f} nats per token; the unpruned control {'gained' if without > 0 else 'lost'} "
        f"{abs(without):.3f} on the same budget.",
    ]
    if gained > 0 and without > 0:
        lines.append("Both models learnt the text, so the gain alone does not show that heads recovered.")
    if (pruned.ratio_interval(base) or (1.0,))[0] > 1:
        share = 1 - left / cost
        lines.append(f"Pruning cost {cost:.4f} nats per token before, {left:.4f} when both are tuned: {share:.0%} of the cost came back.")
    else:
        lines.append("Pruning cost nothing measurable, so no share of it can come back.")
    lines.append(f"Against the tuned control, the perplexity of the tuned pruned model is {_changed(tuned, control)}.")
    return "\n".join(lines)


def conclude_quantize(record: Record) -> str:
    """Say what is INT8, how much smaller and faster that is than the same model in FP32, and what it costs."""
    stage = record.stage(QUANTIZE)
    int8, fp32, naive = stage.measurement, stage.control("FP32"), stage.control("INT8, naive")
    facts, turns = int8.facts, stage.comparisons[0]
    floats, divergence = facts["audit"]["float_inputs"], int8.agreement.mean_kl
    lines = [
        f"{facts['int8_matmuls']} of {facts['expected_matmuls']} matmuls have INT8 weights, {facts['int8_share_of_bytes']:.1%} of the "
        f"file's bytes; inputs that stay float: {', '.join(floats) or 'none'}.",
        f"The file is {fp32.memory.weight_bytes / int8.memory.weight_bytes:.2f} times smaller than in FP32.",
        f"TTFT over that in FP32: {show_ratio(turns.ttft)}; TPOT over that in FP32: {show_ratio(turns.tpot)}.",
        f"The perplexity is {_changed(int8.quality, fp32.quality)}; the mean KL divergence from FP32 is {divergence:.5f} nats per token, "
        f"and both expect the same token on {int8.agreement.top1:.1%} of positions.",
        f"Without smoothing and the gate the divergence is {naive.agreement.mean_kl:.5f}, "
        f"{naive.agreement.mean_kl / divergence:.1f} times as much.",
    ]
    if facts["int8_dot_product"] is False:
        lines.append("This CPU has neither VNNI nor AMX: INT8 products take extra steps, and reading a prompt gains less than elsewhere.")
    if limited := facts["runs_in_4_gb"]:
        lines.append(f"Under a limit of {limited['limit_bytes'] / 1e9:g} GB of address space {limited['error'] or 'it runs'}.")
    return "\n".join(lines)


def _peak(memory: Memory) -> str:
    peak, where = (memory.peak_rss_bytes, "RAM") if memory.peak_vram_bytes is None else (memory.peak_vram_bytes, "VRAM")
    return f"an unknown amount of {where}" if peak is None else f"{megabytes(peak)} MB of {where}"


def _nats(quality: Quality) -> float:
    return quality.nll_nats / quality.num_tokens


def _changed(quality: Quality, base: Quality) -> str:
    """Say by how much a perplexity differs from another, or that no difference was measurable."""
    interval = quality.ratio_interval(base)
    shown = f"{perplexity_ratio(quality, base)} times {base.perplexity:.2f}"
    if interval is None:
        return shown
    if interval[0] <= 1 <= interval[1]:
        return f"{shown}: no difference was measurable"
    return f"{shown}: it {'rose' if interval[0] > 1 else 'fell'}"
