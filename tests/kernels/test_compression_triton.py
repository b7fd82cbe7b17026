"""Compression attention and mean pooling in Triton against the reference."""

import pytest
import torch

from zoo.kernels import Documents, compression_attention, mean_pool, n_slots, rms_norm

# B, T, H, K, D, R, V, block, stride, documents
SHAPES = [
    (1, 3, 1, 1, 16, 0, 16, 8, 4, False),
    pytest.param((2, 150, 3, 1, 16, 16, 16, 8, 4, False), marks=pytest.mark.slow),
    pytest.param((1, 130, 4, 2, 16, 0, 24, 2, 2, False), marks=pytest.mark.long),
    pytest.param((2, 90, 4, 2, 24, 8, 16, 4, 4, True), marks=pytest.mark.slow),
]


def make(randn, B, T, H, K, D, R, V, stride):
    N = n_slots(T, stride)
    rotary = [randn(B, T, H, R), randn(B, N, R)] if R else [None, None]
    return [randn(B, T, H, D), randn(B, N, K, D), randn(B, N, K, V), *rotary]


def attend(documents, block, stride):
    def function(q, k, v, q_rope, k_rope, impl):
        options = {"block": block, "stride": stride, "documents": documents, "impl": impl}
        return compression_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, **options)

    return function


@pytest.mark.interp
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted(shape, randn, pack, agree):
    *sizes, block, stride, packed = shape
    documents = pack([[30, 1, 59], [3, 87]]) if packed else None
    agree(attend(documents, block, stride), make(randn, *sizes, stride))


@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize(("T", "block", "stride"), [(70, 8, 4), (90, 6, 4), (90, 5, 3), (5, 8, 8)])
@pytest.mark.parametrize("packed", [False, True])
def test_pooling_interpreted(T, block, stride, packed, randn, pack, agree):
    documents = pack([[T - 4, 1, 3], [T // 2, T - T // 2]]) if packed else None

    def function(x, impl):
        return mean_pool(x, block=block, stride=stride, documents=documents, impl=impl)

    agree(function, [randn(2, T, 3, 24)])


@pytest.mark.interp
def test_a_tensor_of_doubles_among_others_is_not_summed_in_float32(randn):
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        mean_pool([randn(1, 8, 4).float(), randn(1, 8, 4)], block=4, stride=4, impl="triton")


@pytest.mark.slow
@pytest.mark.interp
def test_pooling_compiled_as_one_graph(randn):
    """Of three tensors, one of which nothing differentiates; the norm behind it."""
    xs = [randn(*shape).float().requires_grad_() for shape in [(2, 20, 3, 8), (2, 20, 5), (2, 20, 1, 6), (3, 8)]]

    def function(a, b, c, weight):
        pooled = mean_pool([a, b, c], block=8, stride=4, impl="triton")
        return rms_norm(pooled[0], weight, eps=1e-6, impl="triton").sin(), pooled[1], pooled[2].sin()

    def results(f):
        outs = f(*xs)
        used = xs[0], xs[2], xs[3]
        return [*outs, *torch.autograd.grad(outs[0].square().sum() + outs[2].sum(), used)]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(results(function), results(compiled), strict=True))


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("used", [(0, 1, 2, 3), (1,), (0, 2)])
def test_pooling_several_tensors_is_pooling_each(used, packed, randn, pack):
    """Those that nothing differentiates get no gradient."""
    grid = {"block": 8, "stride": 4, "documents": pack([[30, 1, 39], [3, 67]]) if packed else None, "impl": "triton"}
    xs = [randn(2, 70, *shape).float().requires_grad_() for shape in [(3, 48), (1, 16), (20,), (2, 8)]]
    together, alone = mean_pool(xs, **grid), [mean_pool(x, **grid) for x in xs]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    losses = [sum((outs[i] * outs[i].detach()).sum() for i in used) for outs in (together, alone)]
    grads = [torch.autograd.grad(loss, xs, allow_unused=True) for loss in losses]
    assert [i for i, grad in enumerate(grads[0]) if grad is not None] == list(used)
    assert all(torch.equal(grads[0][i], grads[1][i]) for i in used)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sizes", "block", "stride"),
    [
        ((1, 1537, 16, 4, 128, 0, 128), 32, 16),
        ((2, 1500, 16, 4, 64, 32, 64), 16, 16),
        ((2, 1100, 16, 4, 128, 64, 128), 16, 16),
        ((1, 700, 4, 2, 256, 0, 256), 16, 16),
    ],
    ids=str,
)
@pytest.mark.parametrize("packed", [False, True])
def test_gpu(sizes, block, stride, packed, randn, agree):
    starts = torch.rand(*sizes[:2], generator=torch.Generator().manual_seed(3)) < 0.01
    documents = Documents.from_starts(starts).to("cuda") if packed else None
    tensors = [x if x is None else x.cuda() for x in make(randn, *sizes, stride)]
    agree(attend(documents, block, stride), tensors, bound=4e-3, dtype=torch.bfloat16)
