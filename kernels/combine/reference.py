"""The gated sum of pattern outputs."""

import torch

from zoo.kernels.attend import wide


def gated_sum(outputs, gate_logits_BTHP):
    """`zoo.kernels.gated_sum`, outputs [B, T, H, V] with logits [B, T, H, P]: [B, T, H, V]."""
    gates_BTHP = wide(gate_logits_BTHP).sigmoid()
    total = sum(gates_BTHP[..., i : i + 1] * wide(o_BTHV) for i, o_BTHV in enumerate(outputs))
    return torch.as_tensor(total).to(outputs[0].dtype)
