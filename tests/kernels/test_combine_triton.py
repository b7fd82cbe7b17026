"""The gated sum in Triton against the reference."""

import pytest
import torch

from zoo.kernels import gated_sum


def combine(*tensors, impl):
    *outputs, logits = tensors
    return gated_sum(outputs, logits, impl=impl)


@pytest.mark.interp
@pytest.mark.parametrize("P", [1, 2, 3, 4])
def test_interpreted(P, randn, agree):
    agree(combine, [*(randn(2, 9, 3, 24) for _ in range(P)), randn(2, 9, 3, P)])


@pytest.mark.interp
def test_more_than_four_are_refused(randn):
    x = randn(1, 2, 1, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match="up to 4 outputs"):
        gated_sum([x] * 5, randn(1, 2, 1, 5, dtype=torch.float32), impl="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("P", [2, 3])
def test_gpu(P, randn, agree):
    tensors = [*(randn(2, 999, 16, 64) for _ in range(P)), randn(2, 999, 16, P)]
    agree(combine, [x.cuda() for x in tensors], bound=4e-3, dtype=torch.bfloat16)
