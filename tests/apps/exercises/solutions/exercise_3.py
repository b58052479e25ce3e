import numpy as np


def cut_head(c_attn, bias, c_proj, heads, head):
    width = len(c_proj) // heads
    own = np.arange(head * width, (head + 1) * width)
    of_all_three = np.concatenate([own, own + len(c_proj), own + 2 * len(c_proj)])
    return np.delete(c_attn, of_all_three, axis=1), np.delete(bias, of_all_three), np.delete(c_proj, own, axis=0)
