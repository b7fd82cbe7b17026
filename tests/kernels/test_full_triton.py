"""Full attention in Triton against the reference: the interpreter in float32, and a GPU in bf16."""

import pytest
import torch

from zoo.kernels import Documents, full_attention

SHAPES = [(1, 70, 2, 1, 16, 0, 16, False), (2, 24, 6, 2, 16, 8, 24, True)]


def make(randn, B, T, H, K, D, R, V):
    rotary = [randn(B, T, H, R), randn(B, T, R)] if R else [None, None]
    return [randn(B, T, H, D), randn(B, T, K, D), randn(B, T, K, V), *rotary]


@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted(shape, randn, pack, agree):
    *sizes, packed = shape
    documents = pack([[9, 1, 14], [24]]) if packed else None

    def function(q, k, v, q_rope, k_rope, impl):
        return full_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, scale=0.3, documents=documents, impl=impl)

    agree(function, make(randn, *sizes))


@pytest.mark.interp
def test_negative_scale_is_refused(randn):
    x = randn(1, 4, 2, 16, dtype=torch.float32)
    with pytest.raises(ValueError, match="scale is positive"):
        full_attention(x, x, x, scale=-1.0, impl="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(2, 777, 16, 16, 64, 32, 64), (2, 900, 8, 2, 96, 0, 96)], ids=str)
def test_gpu(sizes, randn, agree):
    starts = torch.rand(*sizes[:2], generator=torch.Generator().manual_seed(3)) < 0.01
    documents = Documents.from_starts(starts).to("cuda")

    def function(q, k, v, q_rope, k_rope, impl):
        return full_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, documents=documents, impl=impl)

    tensors = [x if x is None else x.cuda() for x in make(randn, *sizes)]
    agree(function, tensors, bound=4e-3, dtype=torch.bfloat16)
