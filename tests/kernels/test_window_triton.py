"""Window attention in Triton against the reference: the interpreter in float32, and a GPU in bf16."""

import pytest
import torch

from zoo.kernels import Documents, window_attention

# B, T, H, K, D, R, V, window, documents
SHAPES = [
    (1, 1, 1, 1, 16, 0, 16, 1, False),
    pytest.param((2, 53, 4, 2, 16, 8, 24, 20, False), marks=pytest.mark.long),
    (1, 70, 3, 1, 24, 0, 16, 100, False),
    (2, 50, 2, 2, 16, 16, 16, 7, True),
]


def make(randn, B, T, H, K, D, R, V):
    rotary = [randn(B, T, H, R), randn(B, T, R)] if R else [None, None]
    return [randn(B, T, H, D), randn(B, T, K, D), randn(B, T, K, V), *rotary]


@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted(shape, randn, pack, agree):
    *sizes, window, packed = shape
    documents = pack([[1, 17, 2, 30], [49, 1]]) if packed else None

    def function(q, k, v, q_rope, k_rope, impl):
        options = {"window": window, "documents": documents, "impl": impl}
        return window_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, **options)

    agree(function, make(randn, *sizes))


@pytest.mark.slow
@pytest.mark.interp
def test_half_precision(randn, agree):
    def function(q, k, v, q_rope, k_rope, impl):
        return window_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, window=20, impl=impl)

    agree(function, make(randn, 1, 40, 4, 2, 24, 8, 16), bound=1e-3, dtype=torch.float16)


@pytest.mark.interp
def test_strided_inputs(randn, agree):
    def function(qkv, impl):
        q, k, v = qkv.split([16, 16, 16], -1)
        return window_attention(q, k[:, :, :1], v[:, :, :1], window=9, impl=impl)

    agree(function, [randn(2, 21, 2, 48)])


@pytest.mark.slow
@pytest.mark.interp
def test_compiled_as_one_graph(randn):
    x = [randn(1, 20, 2, 16, dtype=torch.float32).requires_grad_() for _ in range(3)]

    def function(q, k, v):
        return window_attention(q, k, v, window=5, impl="triton").sin()

    def results(f):
        out = f(*x)
        return [out, *torch.autograd.grad(out.square().sum(), x)]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(results(function), results(compiled), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sizes", "window"),
    [
        ((1, 1500, 16, 16, 64, 32, 64), 512),
        ((2, 777, 16, 4, 64, 0, 64), 300),
        ((1, 900, 16, 4, 128, 0, 128), 512),
        ((2, 901, 8, 8, 128, 64, 128), 512),  # MLA as in DeepSeek-V3
    ],
    ids=str,
)
@pytest.mark.parametrize("packed", [False, True])
def test_gpu(sizes, window, packed, randn, agree):
    starts = torch.rand(*sizes[:2], generator=torch.Generator().manual_seed(3)) < 0.01
    documents = Documents.from_starts(starts).to("cuda") if packed else None

    def function(q, k, v, q_rope, k_rope, impl):
        options = {"window": window, "documents": documents, "impl": impl}
        return window_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, **options)

    tensors = [x if x is None else x.cuda() for x in make(randn, *sizes)]
    agree(function, tensors, bound=4e-3, dtype=torch.bfloat16)  # bf16 has 8 bits; torch in bf16 errs by 4e-3 to 6e-3
