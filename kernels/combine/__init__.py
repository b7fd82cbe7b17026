"""The gated sum of the outputs of several patterns."""

from collections.abc import Sequence

import torch

from zoo.kernels import checks, dispatch


def _why_not_triton(outputs, gate_logits) -> str | None:
    if len(outputs) > 4:
        return f"it sums up to 4 outputs, not {len(outputs)}"
    return dispatch.why_not_triton(outputs[0])


dispatch.register(
    "gated_sum",
    dispatch.Implementation("triton", "zoo.kernels.combine.op:gated_sum", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.combine.reference:gated_sum"),
)


def gated_sum(outputs: Sequence[torch.Tensor], gate_logits_BTHP: torch.Tensor, *, impl: str = "auto") -> torch.Tensor:
    """o = sum over patterns p of sigmoid(logit_p) * o_p, a gate for each token, head and pattern (NSA, eq. 5).

    outputs: P tensors o_BTHV.  gate_logits_BTHP: may have another float dtype than the outputs (autocast leaves it so).
    Returns o_BTHV in the dtype of the outputs; gates and sum are float32 (float64 for float64 input).
    Left open by the paper, chosen here: gates are not normalised across patterns.
    """
    op = "gated_sum"
    if not outputs:
        raise ValueError(f"{op}: outputs must hold at least one tensor; found none.")
    found = checks.sizes(op, **{f"outputs[{i}]_BTHV": o for i, o in enumerate(outputs)})
    expected = [found["B"], found["T"], found["H"], len(outputs)]
    if list(gate_logits_BTHP.shape) != expected:
        raise ValueError(f"{op}: gate_logits_BTHP must have shape {expected}; found {list(gate_logits_BTHP.shape)}.")
    if gate_logits_BTHP.device != outputs[0].device or not gate_logits_BTHP.is_floating_point():
        raise ValueError(
            f"{op}: gate_logits_BTHP must be floating and on {outputs[0].device}; "
            f"found {gate_logits_BTHP.dtype} on {gate_logits_BTHP.device}."
        )
    return dispatch.call(op, impl, list(outputs), gate_logits_BTHP)
