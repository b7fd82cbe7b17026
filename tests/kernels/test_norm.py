"""The norm in Triton against the reference, and the reference against its formula."""

import pytest
import torch

from zoo.kernels import rms_norm


def norm(x, weight, impl):
    return rms_norm(x, weight, eps=1e-3, impl=impl)


SHAPES = [
    ((2, 5, 3, 12), (3, 12)),
    ((2, 5, 3, 12), (12,)),
    ((2, 1, 1, 2), (1, 2)),
    ((3, 7, 20), (20,)),
    ((1, 70, 2, 64), (2, 64)),
    ((1, 9, 1500), (1500,)),
]


@pytest.mark.interp
@pytest.mark.parametrize(("shape", "heads"), SHAPES)
def test_interpreted(shape, heads, randn, agree):
    agree(norm, [randn(*shape), randn(*heads)])


@pytest.mark.interp
def test_strides(randn, agree):
    """A piece of a wider product, as a projection makes it; heads before tokens; channels that are not side by side."""
    agree(lambda x, weight, impl: norm(x[..., 3:11], weight, impl), [randn(2, 5, 3, 12), randn(3, 8)])
    agree(lambda x, weight, impl: norm(x[..., 3:11], weight, impl), [randn(2, 5, 12), randn(8)])
    agree(lambda x, weight, impl: norm(x.transpose(1, 2), weight, impl), [randn(2, 3, 5, 8), randn(3, 8)])
    agree(lambda x, weight, impl: norm(x.transpose(2, 3), weight, impl), [randn(2, 5, 8, 3), randn(3, 8)])


def test_the_reference_is_the_formula(randn):
    x, weight = randn(2, 4, 3, 6), randn(3, 6)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    torch.testing.assert_close(norm(x, weight, "reference"), expected)
    torch.testing.assert_close(norm(x[:, :, 0], weight[0], "reference"), expected[:, :, 0] / weight[0] * weight[0])


def test_bf16_is_rounded_once(randn):
    x, weight = randn(2, 4, 3, 6).bfloat16(), randn(3, 6).float()
    expected = norm(x.double(), weight.double(), "reference").bfloat16()
    assert torch.equal(norm(x, weight, "reference"), expected)


def test_what_does_not_agree_is_refused(randn):
    with pytest.raises(ValueError, match=r"found \[1, 4, 2, 6\] on cpu, \[3, 6\] on cpu"):
        rms_norm(randn(1, 4, 2, 6), randn(3, 6), eps=1e-6)
    with pytest.raises(ValueError, match=r"x must be \[B, T, \(heads,\) D\]"):
        rms_norm(randn(4, 6), randn(6), eps=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "heads"), [((2, 999, 16, 64), (16, 64)), ((2, 999, 16, 64), (64,)), ((2, 999, 224), (224,))]
)
def test_gpu(shape, heads, randn, agree):
    agree(norm, [randn(*shape).cuda(), randn(*heads).cuda()], bound=4e-3, dtype=torch.bfloat16)
