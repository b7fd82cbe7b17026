"""The grouped product: the reference against a loop, torch's kernel on a GPU against the reference in float64."""

import pytest
import torch

from zoo.kernels import dispatch, grouped_linear

SIZES = [[3, 0, 4], [0, 0, 7], [1], [2, 2, 2, 1]]


def ends(sizes: list[int], device: str = "cpu") -> torch.Tensor:
    return torch.tensor(sizes, device=device).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_reference_multiplies_each_row_by_its_groups_matrix(sizes, randn):
    x, weight = randn(sum(sizes), 5).requires_grad_(), randn(len(sizes), 6, 5).requires_grad_()
    group = [e for e, size in enumerate(sizes) for _ in range(size)]
    found = grouped_linear(x, weight, ends(sizes), impl="reference")
    torch.testing.assert_close(found, torch.stack([weight[e] @ row for e, row in zip(group, x, strict=True)]))
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, ends(sizes), impl="reference"), (x, weight))


def test_what_does_not_agree_is_refused(randn):
    x, weight, end = randn(7, 5), randn(3, 6, 5), ends(SIZES[0])
    with pytest.raises(ValueError, match=r"weight \[E, F, C\], ends \[E\]; found \[\[7, 5\], \[6, 5\], \[3\]\]"):
        grouped_linear(x, weight[0], end)
    with pytest.raises(ValueError, match=r"ends must be int32 \[3\]; found torch.int64 \[3\]"):
        grouped_linear(x, weight, end.long())
    with pytest.raises(ValueError, match=r"one floating dtype; found torch.float64 and torch.float32"):
        grouped_linear(x, weight.float(), end)
    with pytest.raises(ValueError, match=r"on one device; found cpu, meta, cpu"):
        grouped_linear(x, weight.to("meta"), end)
    with pytest.raises(
        ValueError, match=r"grouped_mm.*cannot serve this call: (the tensors are on cpu|torch 2\.[0-7])"
    ):
        grouped_linear(x, weight, end, impl="grouped_mm")


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [[300, 0, 21, 703], [1, 0, 0, 0], [0, 0, 0, 64]])
def test_torchs_kernel(sizes, randn):
    results = []
    x, weight, grad = (randn(*shape).bfloat16() for shape in ((sum(sizes), 64), (4, 88, 64), (sum(sizes), 88)))
    for impl, device, dtype in (("reference", "cpu", torch.float64), ("auto", "cuda", torch.bfloat16)):
        leaves = [t.to(device, dtype).requires_grad_() for t in (x, weight)]
        y = grouped_linear(*leaves, ends(sizes, device), impl=impl)
        results.append([y, *torch.autograd.grad(y, leaves, grad.to(y))])
    assert dispatch.dispatcher.last["grouped_linear"].impl == "grouped_mm"
    for wanted, found in zip(*results, strict=True):
        assert (found.double().cpu() - wanted).norm() <= 4e-3 * wanted.norm()


@pytest.mark.gpu
def test_widths_that_torchs_kernel_does_not_take_are_served(randn):
    x, weight = randn(7, 12).bfloat16().cuda(), randn(3, 10, 12).bfloat16().cuda()
    found = grouped_linear(x, weight, ends(SIZES[0], "cuda"))
    wanted = grouped_linear(x.double().cpu(), weight.double().cpu(), ends(SIZES[0]))
    assert (found.double().cpu() - wanted).norm() <= 1e-2 * wanted.norm()
