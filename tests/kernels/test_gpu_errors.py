"""On a GPU, in bfloat16, at the sizes models have: attention, decoding, pooling and the gated sum err by no more than
1.2 times what PyTorch's own products, softmax and sums in bfloat16 do, in the output and in every gradient. What both
are held to is the same formula in float64.
"""

from dataclasses import dataclass

import pytest
import torch

from zoo.kernels import (
    cached_attention,
    cached_selection_attention,
    compression_attention,
    full_attention,
    gated_sum,
    mean_pool,
    n_slots,
    selection_attention,
    window_attention,
)

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")]  # in autograd's thread

FACTOR = 1.2


@dataclass(frozen=True)
class Setting:
    T: int
    H: int
    K: int
    D: int
    R: int
    compression: tuple[int, int]  # block, stride
    selection: tuple[int, int]  # block, how many
    query_group: int
    window: int = 512


SETTINGS = {
    "ansa_340m": Setting(3001, 16, 4, 64, 32, (16, 16), (16, 64), 4),
    "ansa_1b3": Setting(1501, 16, 4, 128, 64, (16, 16), (16, 32), 4),
    "nsa": Setting(1537, 64, 4, 128, 0, (32, 16), (64, 16), 1),
    "nsa, shared": Setting(1537, 64, 4, 128, 0, (32, 16), (64, 8), 4),
    "groups of 4": Setting(2001, 16, 4, 64, 0, (32, 16), (64, 16), 1),
    "groups of 2, rotary": Setting(1300, 16, 8, 64, 32, (32, 16), (32, 16), 2),
    "groups of 3": Setting(1100, 12, 4, 96, 0, (16, 16), (32, 8), 2, window=100),
}


def plain(sees, scale):
    """The textbook function of q [1, T, H, D], k, v [1, N, K, ...], and rotary parts; sees: bool [1 or K, T, N]."""

    def attend(q, k, v, q_rope=None, k_rope=None):
        k, v = (x[0].transpose(0, 1).repeat_interleave(q.shape[2] // x.shape[2], 0) for x in (k, v))
        scores_HTN = q[0].transpose(0, 1) @ k.mT
        if q_rope is not None:
            scores_HTN = scores_HTN + q_rope[0].transpose(0, 1) @ k_rope[0].mT
        seen_HTN = sees.repeat_interleave(q.shape[2] // sees.shape[0], 0)
        hidden = torch.finfo(scores_HTN.dtype).min
        weights_HTN = (scores_HTN * scale).masked_fill(~seen_HTN, hidden).softmax(-1) * seen_HTN
        return (weights_HTN @ v).transpose(0, 1)[None]

    return attend


def results(function, tensors, dtype):
    """The output and the gradient of each tensor, computed in dtype, in float64."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in tensors]
    o = function(*leaves)
    do = torch.randn(o.shape, generator=torch.Generator("cuda").manual_seed(5), device="cuda").bfloat16()
    return [x.double() for x in (o, *torch.autograd.grad(o, leaves, do.to(o.dtype)))]


def check(ours, theirs, tensors):
    exact = results(theirs, tensors, torch.float64)
    found, bf16 = results(ours, tensors, torch.bfloat16), results(theirs, tensors, torch.bfloat16)
    for i, (x, y, expected) in enumerate(zip(found, bf16, exact, strict=True)):
        compare(x, y, expected, f"result {i}")


def compare(found, bf16, exact, name):
    error, allowed = (((x.double() - exact).norm() / exact.norm()).item() for x in (found, bf16))
    print(f"{name}: {error:.2e}, PyTorch {allowed:.2e}")
    assert error <= FACTOR * allowed, name


def noise(*shapes):
    generator = torch.Generator("cuda").manual_seed(17)
    return [torch.randn(s, generator=generator, device="cuda").bfloat16() for s in shapes]


def operands(setting: Setting, n_keys: int):
    """Queries, keys, values and, where the setting has them, rotary parts."""
    T, H, K, D, R = setting.T, setting.H, setting.K, setting.D, setting.R
    return noise((1, T, H, D), (1, n_keys, K, D), (1, n_keys, K, D), *[(1, T, H, R), (1, n_keys, R)] * bool(R))


def random_choice(setting: Setting):
    """[1, G, K, S]: the block of the group's first query and others before it."""
    (block, n), group = setting.selection, setting.query_group
    own_G11 = (torch.arange(0, setting.T, group, device="cuda") // block)[:, None, None]
    M = torch.arange(-(-setting.T // block), device="cuda")
    generator = torch.Generator("cuda").manual_seed(3)
    rank = torch.rand(len(own_G11), setting.K, len(M), generator=generator, device="cuda")
    rank = rank.masked_fill(own_G11 == M, 2.0).masked_fill(own_G11 < M, -1.0)
    best = rank.topk(min(n, len(M)), -1)
    chosen = best.indices.masked_fill(best.values < 0, len(M)).sort(-1).values
    chosen = chosen.masked_fill(chosen == len(M), -1)
    return torch.nn.functional.pad(chosen, (0, n - chosen.shape[-1]), value=-1)[None].int()


def seen_by_choice(chosen_BGKS, position_T, group, block, n_keys):
    """bool [K, T, N]: keys in chosen blocks, up to the query."""
    blocks_KTS = chosen_BGKS[0].repeat_interleave(group, 0)[: len(position_T)].transpose(0, 1)
    key_N = torch.arange(n_keys, device="cuda")
    inside = torch.zeros(*blocks_KTS.shape[:2], n_keys, dtype=torch.bool, device="cuda")
    for block_KT in blocks_KTS.unbind(-1):
        inside |= key_N // block == block_KT[..., None]
    return inside & (key_N <= position_T[:, None])


@pytest.fixture(autouse=True)
def short_rows_too(monkeypatch):
    """Small groups run by key block, as they do at the lengths of training."""
    from zoo.kernels.selection import op

    monkeypatch.setattr(op, "MIN_TOKENS", 1)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("name", ["full", "window", "compression", "selection"])
def test_attention(name, setting):
    T = setting.T
    t, i = torch.arange(T, device="cuda")[:, None], torch.arange(T, device="cuda")
    block, stride = setting.compression
    tensors = operands(setting, n_slots(T, stride) if name == "compression" else T)
    chosen = random_choice(setting) if name == "selection" else None

    def ours(q, k, v, q_rope=None, k_rope=None):
        if name == "compression":
            grid = {"block": block, "stride": stride, "q_rope": q_rope, "k_rope": k_rope}
            return compression_attention(q, k, v, **grid, impl="triton")[0]
        options = {"q_rope": q_rope, "k_rope": k_rope, "impl": "triton"}
        if name == "selection":
            options |= {"selection_block": setting.selection[0], "query_group": setting.query_group}
            return selection_attention(q, k, v, chosen, **options)
        if name == "window":
            return window_attention(q, k, v, window=setting.window, **options)
        return full_attention(q, k, v, **options)

    if name == "compression":
        sees = (torch.arange(n_slots(T, stride), device="cuda") * stride + block - 1 <= t)[None]
    elif name == "selection":
        sees = seen_by_choice(chosen, t[:, 0], setting.query_group, setting.selection[0], T)
    else:
        sees = ((i <= t) & (t - i < (setting.window if name == "window" else T)))[None]
    check(ours, plain(sees, (setting.D + setting.R) ** -0.5), tensors)


@pytest.mark.parametrize("P", [2, 3])
def test_gated_sum(P):
    def ours(logits, *outputs):
        return gated_sum(outputs, logits, impl="triton")

    def theirs(logits, *outputs):
        return sum(logits[..., i : i + 1].sigmoid() * o for i, o in enumerate(outputs))

    check(ours, theirs, noise((1, 3001, 16, P), *[(1, 3001, 16, 64)] * P))


@pytest.mark.parametrize(("block", "stride"), [(16, 16), (32, 16)])
def test_mean_pool(block, stride):
    T = 3008

    def ours(x):
        return mean_pool(x, block=block, stride=stride, impl="triton")[:, : (T - block) // stride + 1]

    check(ours, lambda x: x.unfold(1, block, stride).mean(-1), noise((1, T, 4, 64)))


@pytest.mark.parametrize("heads", [(16, 1, 224, 32), (16, 4, 64, 0)], ids=["latents", "keys and values"])
def test_decoding(heads):
    """The last 4 tokens of a cache of 5,000, which is no multiple of any tile."""
    (H, J, D, R), N, T, block, n = heads, 5000, 4, 16, 64
    q, k, v, *rope = noise((1, T, H, D), (1, N, J, D), (1, N, J, D), *[(1, T, H, R), (1, N, R)] * bool(R))
    v = k if R else v
    position = torch.arange(N - T, N, device="cuda")[None]
    scale, options = (D + R) ** -0.5, dict(zip(["q_rope", "k_rope"], rope, strict=False))
    setting = Setting(N, H, 4, D, R, (16, 16), (block, n), T)
    chosen = random_choice(setting)[:, -1:].expand(-1, T, -1, -1).contiguous()

    def held(found, sees, name):
        exact = plain(sees, scale)(*[x.double() for x in (q, k, v, *rope)])
        compare(found, plain(sees, scale)(q, k, v, *rope), exact, name)

    whole = (torch.arange(N, device="cuda") <= position[0, :, None])[None]
    ends = position * 0, position + 1
    held(cached_attention(q, k, v, *ends, scale=scale, **options, impl="triton")[0], whole, "attention")
    options |= {"scale": scale, "selection_block": block, "impl": "triton"}
    sees = seen_by_choice(chosen[:, :1], position[0], T, block, N)
    held(cached_selection_attention(q, k, v, chosen, position, **options), sees, "selection")
