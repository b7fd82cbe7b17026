"""Residual addition and norm in Triton against the reference, and the reference against its formula."""

import pytest
import torch

from zoo.kernels import add_rms_norm

EPS = 1e-3
SHAPES = [(2, 5, 12), (1, 1, 2), (3, 7, 20), (2, 33, 64), (1, 9, 1500)]


def both(x, delta, weight, impl):
    return add_rms_norm(x, delta, weight, eps=EPS, impl=impl)


@pytest.mark.interp
@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted(shape, randn, agree):
    agree(both, [randn(*shape), randn(*shape), randn(shape[-1])])


@pytest.mark.interp
def test_before_the_first_layer_the_stream_is_passed_on(randn, agree):
    agree(both, [randn(2, 5, 12), None, randn(12)])


@pytest.mark.interp
@pytest.mark.parametrize("used", [0, 1])
def test_one_result_may_be_left_unused(used, randn, agree):
    def one(x, delta, weight, impl):
        return both(x, delta, weight, impl)[used] + 0 * weight.sum()  # a gradient of the weight there is in any case

    agree(one, [randn(2, 5, 12), randn(2, 5, 12), randn(12)])


@pytest.mark.interp
def test_a_narrow_norm_of_a_wide_stream(randn):
    """The stream is not rounded; the norm is rounded once; the gradient of each input has the input's dtype."""
    x, delta, weight = randn(4, 24).float(), randn(4, 24).half(), randn(24).float()
    expected = add_rms_norm(x, delta, weight, eps=EPS, dtype=torch.float16, impl="reference")
    results = {}
    for impl in ("triton", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, delta, weight)]
        total, normed = add_rms_norm(*leaves, eps=EPS, dtype=torch.float16, impl=impl)
        assert torch.equal(total, x + delta)
        assert total.dtype == torch.float32
        assert normed.dtype == torch.float16
        torch.testing.assert_close(normed, expected[1], rtol=1e-3, atol=1e-6)
        results[impl] = torch.autograd.grad([total, normed], leaves, [total.detach() * 0.5, normed.detach()])
    for found, wanted, leaf in zip(results["triton"], results["reference"], (x, delta, weight), strict=True):
        assert found.dtype == leaf.dtype
        torch.testing.assert_close(found, wanted, rtol=4e-3, atol=4e-3)


@pytest.mark.interp
def test_a_narrow_stream_is_kept_as_it_is(randn, agree):
    """No second copy of it; the norm before the first layer keeps one of its own, as the stream is not its result."""
    x, delta, weight = (randn(*shape).half() for shape in ((4, 24), (4, 24), (24,)))
    weight = weight.float()
    for added in (delta, None):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            leaves = [None if t is None else t.clone().requires_grad_() for t in (x, added, weight)]
            total, normed = add_rms_norm(*leaves, eps=EPS, impl="triton")
        assert total.dtype == normed.dtype == torch.float16
        assert (total.data_ptr() in {t.data_ptr() for t in kept}) == (added is not None)
        normed.sum().backward()

    def narrow(x, delta, weight, impl):
        return add_rms_norm(x, delta, weight, eps=EPS, impl=impl)

    agree(narrow, [x, delta, weight], bound=4e-3, dtype=torch.float16)


def test_the_reference_is_the_formula(randn):
    x, delta, weight = randn(2, 4, 6), randn(2, 4, 6), randn(6)
    total, normed = both(x, delta, weight, "reference")
    assert torch.equal(total, x + delta)
    expected = total / (total.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
    torch.testing.assert_close(normed, expected)
    same, alone = both(x, None, weight, "reference")
    assert same is x
    torch.testing.assert_close(alone, both(x, torch.zeros_like(x), weight, "reference")[1])


def test_what_does_not_agree_is_refused(randn):
    with pytest.raises(ValueError, match=r"found \[2, 3, 4\], \[5\]"):
        add_rms_norm(randn(2, 3, 4), None, randn(5), eps=EPS)
    with pytest.raises(ValueError, match=r"found \[2, 3, 4\], \[4\], \[2, 4\]"):
        add_rms_norm(randn(2, 3, 4), randn(2, 4), randn(4), eps=EPS)
    with pytest.raises(ValueError, match="on one device; found cpu, meta"):
        add_rms_norm(randn(2, 4), None, randn(4).to("meta"), eps=EPS)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 999, 1024), (3, 333, 2048), (1, 100, 8192), (2, 77, 100)])
def test_gpu(shape, randn, agree):
    tensors = [randn(*shape).cuda(), randn(*shape).cuda(), randn(shape[-1]).cuda()]
    agree(both, tensors, bound=4e-3, dtype=torch.bfloat16)
    agree(both, [tensors[0], None, tensors[2]], bound=4e-3, dtype=torch.bfloat16)


@pytest.mark.gpu
def test_gpu_with_a_float32_stream(randn):
    """As training has it: the forward sum is float32's; gradients agree with float64 as bfloat16 inputs allow."""
    x, delta, weight = randn(2, 999, 1024).cuda(), randn(2, 999, 1024).cuda(), randn(1024).cuda()
    narrow = [x.float(), delta.bfloat16(), weight.float()]
    grads = [randn(2, 999, 1024).cuda().float(), randn(2, 999, 1024).cuda().bfloat16()]
    found = [t.clone().requires_grad_() for t in narrow]
    total, normed = add_rms_norm(*found, eps=EPS, dtype=torch.bfloat16, impl="triton")
    assert torch.equal(total, narrow[0] + narrow[1])
    wide = [t.double().requires_grad_() for t in narrow]
    expected = torch.autograd.grad(add_rms_norm(*wide, eps=EPS, impl="reference"), wide, [g.double() for g in grads])
    for x_found, x_expected in zip(torch.autograd.grad([total, normed], found, grads), expected, strict=True):
        assert (x_found.double() - x_expected).norm() <= 4e-3 * x_expected.norm()
