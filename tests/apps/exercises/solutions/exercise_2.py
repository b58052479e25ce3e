import torch


def head_importance(losses, heads):
    total = torch.zeros(heads)
    for loss in losses:
        gates = torch.ones(heads, requires_grad=True)
        loss(gates).backward()
        total += gates.grad.abs()
    return total / len(losses)
