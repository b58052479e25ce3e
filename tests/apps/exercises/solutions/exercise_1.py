import numpy as np


def perplexity(logits, ids):
    before = logits[:-1] - logits[:-1].max(1, keepdims=True)
    log_probabilities = before - np.log(np.exp(before).sum(1, keepdims=True))
    return np.exp(-log_probabilities[np.arange(len(ids) - 1), ids[1:]].mean())
