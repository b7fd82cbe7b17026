"""The rotation in Triton against the reference, and the reference's refusals."""

import pytest
import torch

from zoo.kernels import rotate


def turn(x, angle, impl):
    """The table carries no gradient."""
    angle = angle.detach()
    if x.dtype != torch.float64:
        angle = angle.float()
    return rotate(x, angle.cos(), angle.sin(), impl=impl)


SHAPES = [
    ((2, 5, 3, 12), (2, 5, 6)),
    ((2, 1, 1, 2), (1, 1, 1)),
    ((3, 7, 20), (1, 7, 10)),
    ((1, 70, 2, 64), (1, 70, 32)),
]


@pytest.mark.interp
@pytest.mark.parametrize(("shape", "table"), SHAPES)
def test_interpreted(shape, table, randn, agree):
    angle = randn(*table)
    agree(lambda x, impl: turn(x, angle, impl), [randn(*shape)])


@pytest.mark.interp
def test_strides(randn, agree):
    """A part of wider heads, as a projection makes it."""
    angle = randn(2, 5, 4)
    agree(lambda x, impl: turn(x[..., 3:11], angle, impl), [randn(2, 5, 3, 12)])
    agree(lambda x, impl: turn(x.transpose(1, 2), angle, impl), [randn(2, 3, 5, 8)])


def test_the_reference_is_a_rotation(randn):
    x, angle = randn(1, 4, 2, 6), randn(1, 4, 3)
    y = rotate(x, angle.cos(), angle.sin())
    z = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * angle)[:, :, None]
    torch.testing.assert_close(y, torch.cat((z.real, z.imag), -1))


def test_what_does_not_agree_is_refused(randn):
    with pytest.raises(ValueError, match=r"found \[1, 4, 2, 6\], \[1, 5, 3\]"):
        rotate(randn(1, 4, 2, 6), randn(1, 5, 3), randn(1, 5, 3))
    with pytest.raises(ValueError, match=r"sin and cos must be alike and on cpu"):
        rotate(randn(1, 4, 2, 6), randn(1, 4, 3), randn(1, 4, 4))
    with pytest.raises(ValueError, match=r"\[1, 4, 3\] on meta, torch\.float64 \[1, 4, 3\] on cpu"):
        rotate(randn(1, 4, 2, 6), randn(1, 4, 3), randn(1, 4, 3).to("meta"))


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "table"), [((2, 999, 16, 64), (1, 999, 32)), ((2, 999, 32), (2, 999, 16))])
def test_gpu(shape, table, randn, agree):
    angle = randn(*table).cuda()
    agree(lambda x, impl: turn(x, angle, impl), [randn(*shape).cuda()], bound=4e-3, dtype=torch.bfloat16)
