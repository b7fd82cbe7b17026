"""The SwiGLU feed-forward in Triton against the reference, and the reference against its formula."""

import pytest
import torch

from zoo.kernels import swiglu_mlp


def mlp(x, w_gate, w_up, w_down, impl):
    return swiglu_mlp(x, w_gate, w_up, w_down, impl=impl)


def inputs(randn, *shape: int, width: int):
    C = shape[-1]
    return [randn(*shape), randn(width, C) / C**0.5, randn(width, C) / C**0.5, randn(C, width) / width**0.5]


@pytest.mark.interp
@pytest.mark.parametrize(("shape", "width"), [((2, 5, 12), 20), ((1, 1, 2), 1), ((3, 16), 176), ((2, 40, 32), 33)])
def test_interpreted(shape, width, randn, agree):
    agree(mlp, inputs(randn, *shape, width=width))


@pytest.mark.interp
def test_backward_runs_once(randn):
    leaves = [t.float().requires_grad_() for t in inputs(randn, 3, 8, width=12)]
    out = mlp(*leaves, "triton").sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="swiglu_mlp: its backward pass ran already"):
        out.backward()


def test_the_reference_is_the_formula(randn):
    x, w_gate, w_up, w_down = inputs(randn, 2, 5, 6, width=10)
    gate = x @ w_gate.T
    expected = (gate / (1 + (-gate).exp()) * (x @ w_up.T)) @ w_down.T
    torch.testing.assert_close(mlp(x, w_gate, w_up, w_down, "reference"), expected)


def test_what_does_not_agree_is_refused(randn):
    x, w_gate, w_up, w_down = inputs(randn, 2, 5, 6, width=10)
    with pytest.raises(ValueError, match=r"found \[2, 5, 6\], \[10, 6\], \[10, 6\], \[10, 6\]"):
        swiglu_mlp(x, w_gate, w_up, w_down.T)
    with pytest.raises(ValueError, match="on one device; found cpu, meta"):
        swiglu_mlp(x, w_gate.to("meta"), w_up, w_down)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")  # torch's thread for backward, its first use
@pytest.mark.parametrize(("shape", "width"), [((2, 999, 256), 704), ((1, 130, 100), 333)])
def test_gpu(shape, width, randn, agree):
    agree(mlp, [t.cuda() for t in inputs(randn, *shape, width=width)], bound=8e-3, dtype=torch.bfloat16)
