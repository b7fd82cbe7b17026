"""What kernels take on a GPU beside bf16 rows: other dtypes, strides, and rows of a million tokens."""

import pytest
import torch

from zoo.kernels import (
    choose_blocks,
    compression_attention,
    full_attention,
    gated_sum,
    mean_pool,
    selection_attention,
    window_attention,
)

pytestmark = pytest.mark.gpu

MILLION = 2**20
BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}


def chosen_before(T: int, group: int, block: int, K: int, S: int, device="cuda") -> torch.Tensor:
    """[1, G, K, S]: each group reads its own block and the S - 1 before it."""
    own_G = torch.arange(0, T, group, device=device, dtype=torch.int32) // block
    blocks_GS = own_G[:, None] - torch.arange(S - 1, -1, -1, device=device, dtype=torch.int32)
    blocks_GS = blocks_GS.masked_fill(blocks_GS < 0, 2**30).sort(1).values  # empty places go last
    blocks_GS = blocks_GS.masked_fill(blocks_GS == 2**30, -1)
    return blocks_GS[None, :, None].expand(1, -1, K, -1).contiguous()


def operations(T: int, K: int):
    """name -> function(q, k, v, q_rope, k_rope, impl): every differentiable attention of these tensors."""
    chosen = chosen_before(T, 4, 16, K, 4)
    grid = {"block": 16, "stride": 16}

    def compression(q, k, v, q_rope, k_rope, impl):
        k, v, k_rope = (x if x is None else mean_pool(x, **grid, impl=impl) for x in (k, v, k_rope))
        return compression_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, **grid, impl=impl)[0]

    def selection(q, k, v, q_rope, k_rope, impl):
        options = {"selection_block": 16, "query_group": 4, "impl": impl}
        return selection_attention(q, k, v, chosen, q_rope=q_rope, k_rope=k_rope, **options)

    def window(q, k, v, q_rope, k_rope, impl):
        return window_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, window=33, impl=impl)

    def full(q, k, v, q_rope, k_rope, impl):
        return full_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, impl=impl)

    return {"compression": compression, "selection": selection, "window": window, "full": full}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["compression", "selection", "window", "full"])
@pytest.mark.parametrize("R", [0, 16])
def test_dtypes(name, dtype, R, randn, agree):
    T, H, K, D, V = 333, 6, 2, 48, 80
    rotary = [randn(1, T, H, R), randn(1, T, R)] if R else [None, None]
    tensors = [randn(1, T, H, D), randn(1, T, K, D), randn(1, T, K, V), *rotary]
    tensors = [x if x is None else x.cuda() for x in tensors]
    agree(operations(T, K)[name], tensors, bound=BOUNDS[dtype], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dtypes_of_the_gated_sum(dtype, randn, agree):
    def combine(a, b, logits, impl):
        return gated_sum([a, b], logits, impl=impl)

    tensors = [randn(1, 77, 3, 40).cuda(), randn(1, 77, 3, 40).cuda(), randn(1, 77, 3, 2).cuda()]
    agree(combine, tensors, bound=BOUNDS[dtype], dtype=dtype)


@pytest.mark.parametrize("name", ["compression", "selection", "window", "full"])
def test_strides(name, randn, agree):
    """Heads before tokens; keys, values and the rotary key as parts of one tensor, at odd offsets; a rotary query
    whose last axis is not the innermost."""
    B, T, H, K, D, R = 2, 140, 4, 2, 32, 16
    operation = operations(T, K)[name]

    def strided(q_BHTD, kv_BTKC, q_rope_BTRH, k_rope_BTR, impl):
        k, v = kv_BTKC[..., 1 : 1 + D], kv_BTKC[..., 1 + D : 1 + 2 * D]
        return operation(q_BHTD.transpose(1, 2), k, v, q_rope_BTRH.mT, k_rope_BTR[..., 2 : 2 + R], impl)

    if name == "selection":
        B = 1
    tensors = [randn(B, H, T, D), randn(B, T, K, 2 * D + 2), randn(B, T, R, H), randn(B, T, R + 3)]
    bound = 8e-3 if name == "compression" else 4e-3  # pooled keys and values are rounded to bf16 as well
    agree(strided, [x.cuda() for x in tensors], bound=bound, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["compression", "selection", "window", "full"])
@pytest.mark.parametrize("R", [0, 16])
def test_many_runs_give_the_same_bits(name, R):
    """A race shows in one run of a hundred: a load that no turn of a loop asked for gave 1 wrong dk in 60."""
    B, T, H, K, D = 1, 1024, 16, 4, 32
    generator = torch.Generator("cuda").manual_seed(3)
    shapes = [(B, T, H, D), (B, T, K, D), (B, T, K, D)] + [(B, T, H, R), (B, T, R)] * bool(R)
    leaves = [torch.randn(*s, generator=generator, device="cuda", dtype=torch.bfloat16) for s in shapes]
    leaves = [x.requires_grad_() for x in leaves]
    do = torch.randn(B, T, H, D, generator=generator, device="cuda", dtype=torch.bfloat16)
    operation = operations(T, K)[name]

    def results():
        o = operation(*leaves, *[None] * (5 - len(leaves)), "triton")
        return torch.cat([x.flatten() for x in (o, *torch.autograd.grad(o, leaves, do))])

    first = results()
    differing = sum((results() != first).any().int() for _ in range(200))
    assert differing.item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window", "selection"])
def test_a_million_tokens(name, randn):
    """2^32 elements of q: offsets past 31 bits. The last tokens see the last keys only, so a short row must agree."""
    H, K, D, tail = 32, 2, 128, 1024
    generator = torch.Generator("cuda").manual_seed(3)
    leaves = [
        torch.randn(1, MILLION, n, D, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for n in (H, K, K)
    ]
    do = torch.randn(1, tail, H, D, generator=generator, device="cuda", dtype=torch.bfloat16)
    short = [x.detach()[:, -tail:].clone().requires_grad_() for x in leaves]
    found = operations(MILLION, K)[name](*leaves, None, None, "triton")
    expected = operations(tail, K)[name](*short, None, None, "triton")
    whole_do = torch.zeros_like(found)
    whole_do[:, -tail:] = do
    found_grads = torch.autograd.grad(found, leaves, whole_do)
    grads = torch.autograd.grad(expected, short, do)
    kept = tail - 64  # the first tokens of the short row miss keys that the long row has
    for a, b in zip([found, *found_grads], [expected, *grads], strict=True):
        a, b = a[:, -kept:].float(), b[:, -kept:].float()
        assert (a - b).norm() <= 2e-3 * b.norm()
    assert not found_grads[0][:, : -tail - 64].any()


@pytest.mark.slow
def test_a_million_tokens_compressed_and_chosen():
    """Sampled queries against the formula, in float64, and the choice that follows from it."""
    H, K, D, stride = 4, 1, 32, 64
    generator = torch.Generator("cuda").manual_seed(3)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    q, k, v = noise(1, MILLION, H, D), noise(1, MILLION // stride, K, D), noise(1, MILLION // stride, K, D)
    o, lse = compression_attention(q, k, v, block=stride, stride=stride, impl="triton")
    sampled_t = torch.tensor([63, 64, 1000, 77_777, MILLION // 2, MILLION - 65, MILLION - 1], device="cuda") // 4 * 4
    scores = torch.einsum("tHd,nd->tHn", q[0, sampled_t].double(), k[0, :, 0].double()) * D**-0.5
    last_N = torch.arange(MILLION // stride, device="cuda") * stride + stride - 1
    hidden_tN = last_N > sampled_t[:, None]
    scores = scores.masked_fill(hidden_tN[:, None], -torch.inf)
    seen = ~hidden_tN.all(1)
    p = scores.softmax(-1)[seen]
    expected = p @ v[0, :, 0].double()
    assert (o[0, sampled_t][seen].double() - expected).norm() <= 4e-3 * expected.norm()
    assert torch.allclose(lse[0, sampled_t].double(), scores.logsumexp(-1), atol=1e-3)

    grid = {"compression_block": stride, "compression_stride": stride, "selection_block": stride, "n_selected": 8}
    chosen = choose_blocks(q, k, lse, **grid, query_group=4, impl="triton")[0, sampled_t[seen] // 4, 0]
    importance = p.sum(1)
    for row, t, value in zip(chosen.tolist(), sampled_t[seen].tolist(), importance, strict=True):
        own = t // stride
        forced = {0, own, max(own - 1, 0)}
        assert forced <= set(row)
        others = [m for m in row if m >= 0 and m not in forced]
        rest = [m for m in range(own) if m not in forced and m not in others]
        if rest and others:
            assert value[others].min() >= value[rest].max() * (1 - 1e-3)
