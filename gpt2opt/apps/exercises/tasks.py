"""The four tasks: what a learner's file begins as, and the trials that decide: what has to hold, and what came instead, if it does not."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2opt.prune import head_importance

Function = Callable[..., Any]
Trials = Iterator[tuple[str, str]]


class Exercise(NamedTuple):
    function: str
    arguments: str
    task: str  # the docstring
    trials: Callable[[Function], Trials]


def differs(found: Any, expected: Any) -> str:
    """Say how what was returned differs from what was expected by more than 0.0001 of its largest value; nothing if it does not."""
    wanted = np.asarray(expected, dtype=np.float64)
    what = f"an array of shape {wanted.shape}" if wanted.ndim else "a number"
    try:
        came = np.asarray(found.detach() if isinstance(found, torch.Tensor) else "" if found is None else found, dtype=np.float64)
    except (TypeError, ValueError):  # NumPy alone would take None for NaN
        return f"{found!r:.60} came, expected {what}"
    if came.shape != wanted.shape:
        return f"an array of shape {came.shape} came, expected {what}"
    off = np.nan_to_num(np.abs(came - wanted), nan=np.inf)
    worst = np.unravel_index(off.argmax(), off.shape)
    where = f" at {tuple(map(int, worst))}" if wanted.ndim else ""
    return "" if off.max() <= 1e-4 * np.abs(wanted).max() else f"{came[worst]:.6g} came{where}, expected {wanted[worst]:.6g}"


def try_perplexity(perplexity: Function) -> Trials:
    rng, ids = np.random.default_rng(0), np.array([3, 1, 4, 1, 5, 9, 2])
    yield "equal logits over 12 tokens: each costs ln 12 nats, so the perplexity is 12", differs(perplexity(np.zeros((7, 12)), ids), 12)
    sure = 50.0 * (np.arange(12) == np.append(ids[1:], 0)[:, None])
    yield "logits that are sure of the NEXT token: the perplexity is 1", differs(perplexity(sure, ids), 1)
    logits = rng.normal(size=(7, 12))
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits[:-1]), torch.tensor(ids[1:]))
    yield "random logits: as torch's cross_entropy says", differs(perplexity(logits.copy(), ids), math.exp(loss))
    yield "the same logits plus 1000: nothing changes, nothing overflows", differs(perplexity(logits + 1000, ids), math.exp(loss))


def try_importance(importance: Function) -> Trials:
    slopes = torch.tensor([[0.5, -2.0, 0.0], [-0.5, -1.0, 0.25]])
    linear = [lambda gates, slope=slope: (slope * gates).sum() for slope in slopes]
    yield "a loss that falls by 2 with a gate: the importance is 2, not -2", differs(importance(linear[:1], 3), slopes[0].abs())
    yield "two texts with opposite slopes: they don't cancel", differs(importance(linear, 3), slopes.abs().mean(0))
    yield "a curved loss: its slope where all gates are 1", differs(importance([lambda gates: (gates**3).sum()], 2), [3, 3])
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=4, n_embd=32, n_positions=16, vocab_size=50, initializer_range=0.2, attn_implementation="eager")
    model, texts = GPT2LMHeadModel(config).eval(), torch.randint(0, 50, (3, 1, 12))
    gated = [lambda gates, ids=ids: model(ids, labels=ids, head_mask=gates).loss for ids in texts]
    yield (
        "a GPT-2 with gates on its heads: as gpt2opt.head_importance says",
        differs(importance(gated, 4), head_importance(model, texts)[0]),
    )


def attend(heads: int, x: np.ndarray, c_attn: np.ndarray, bias: np.ndarray, c_proj: np.ndarray) -> np.ndarray:
    """Return what attention makes of x (T, D), without a causal mask: cutting a head is the same with one."""
    q, k, v = (part.reshape(len(x), heads, -1).swapaxes(0, 1) for part in np.split(x @ c_attn + bias, 3, axis=1))
    scores = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
    return (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1) @ c_proj


def try_cut(cut_head: Function) -> Trials:
    rng = np.random.default_rng(0)
    x, c_attn, bias, c_proj = (rng.normal(size=shape) for shape in ((5, 12), (12, 36), 36, (12, 12)))
    wanted = [(12, 24), (24,), (8, 12)]
    for head in range(3):
        cut = cut_head(c_attn.copy(), bias.copy(), c_proj.copy(), 3, head)
        shapes = [np.shape(part) for part in cut] if isinstance(cut, tuple | list) else cut
        yield f"head {head} of 3 cut: the shapes", "" if shapes == wanted else f"{shapes!r:.90} came, expected {wanted}"
        silenced = c_proj * (np.arange(12) // 4 != head)[:, None]
        found, expected = attend(2, x, *map(np.asarray, cut)), attend(3, x, c_attn, bias, silenced)
        yield f"head {head} of 3 cut: attention gives what it gives with that head silenced by zeros", differs(found, expected)


def try_int8(int8_matmul: Function) -> Trials:
    rng = np.random.default_rng(0)
    x, weight, others = rng.normal(size=(8, 64)), rng.normal(size=(64, 16)), np.arange(16) != 3

    def rounded(values: np.ndarray, axis: int | None = None) -> np.ndarray:
        scale = np.abs(values).max(axis) / 127
        return np.round(values / np.where(scale, scale, 1)) * scale

    def error(found: Any, exact: np.ndarray) -> float:
        return float(np.linalg.norm((np.asarray(found) - exact)[:, others]) / np.linalg.norm(exact[:, others]))

    yield "one scale for the weight", differs(int8_matmul(x.copy(), weight.copy(), False), rounded(x) @ rounded(weight))
    yield "a scale for each column", differs(int8_matmul(x.copy(), weight.copy(), True), rounded(x) @ rounded(weight, 0))
    zero, outlier = weight * others, np.where(others, weight, 100 * weight)
    yield "a column of zeros stays zero", differs(int8_matmul(x.copy(), zero.copy(), True), rounded(x) @ rounded(zero, 0))
    one, each = (error(int8_matmul(x.copy(), outlier.copy(), how), x @ outlier) for how in (False, True))
    said = f"one column 100 times as large: the others are off by {one:.0%} with one scale, by {each:.1%} with a scale for each"
    yield said, "" if each < 0.05 < one else "expected less than 5% with a scale for each, and more with one"


PERPLEXITY = """Return the perplexity of one text: exp of the mean loss of its tokens, in nats.

    The loss of a token is minus the log of its probability, which is the softmax of the logits BEFORE it: logits[t] predict ids[t + 1].
    The first token is predicted by nothing. Logits may be large: subtract their maximum before you take exp().
    logits: array (T, V), a row of V scores at each position. ids: array (T,), the tokens of the text."""
IMPORTANCE = """Return the importance of each head, (heads,): how much the loss would change if it were removed.

    A gate is a factor on the output of a head: 1 leaves the model as it is, 0 removes the head. To first order, the loss changes by its
    slope over the gate, where all gates are 1. The size of the slope counts for each text; then take the mean over the texts.
    losses: a function for each text, which takes gates, a torch tensor (heads,), and returns the loss. heads: how many there are."""
CUT = """Return (c_attn, bias, c_proj) without one head.

    x @ c_attn + bias gives the queries, keys and values of all heads, D columns each, side by side. A head owns D / heads neighbouring
    columns of each of the three. The outputs of the heads stand side by side too, and c_proj reads them: by its rows.
    c_attn, bias, c_proj: arrays (D, 3 D), (3 D,) and (D, D). heads: how many there are. head: which one leaves, from 0."""
INT8 = """Return x @ weight, computed with integers from -127 to 127.

    A scale is the largest absolute value / 127, the integers are the values / scale, rounded. x has one scale; weight has one too, or one
    for each column if per_channel. Multiply the integers in a type that holds the sums, such as int32, then multiply by both scales. A
    column of zeros stays zero.
    x, weight: arrays (M, K) and (K, N). per_channel: False or True."""
EXERCISES = {
    1: Exercise("perplexity", "logits, ids", PERPLEXITY, try_perplexity),
    2: Exercise("head_importance", "losses, heads", IMPORTANCE, try_importance),
    3: Exercise("cut_head", "c_attn, bias, c_proj, heads, head", CUT, try_cut),
    4: Exercise("int8_matmul", "x, weight, per_channel", INT8, try_int8),
}
