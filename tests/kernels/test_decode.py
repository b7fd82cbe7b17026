"""Attention to a cache: the references against those of whole rows, and the kernels against the references."""

import pytest
import torch

from zoo.kernels import (
    cached_attention,
    cached_choose_blocks,
    cached_selection_attention,
    choose_blocks,
    compression_attention,
    full_attention,
    selection_attention,
    window_attention,
)

SEQ_LEN, H, K, D, V, R = 45, 4, 2, 6, 5, 4


@pytest.fixture
def row(randn):
    """q, k, v, q_rope, k_rope of two rows."""
    return (
        randn(2, SEQ_LEN, H, D),
        *(randn(2, SEQ_LEN, K, n) for n in (D, V)),
        randn(2, SEQ_LEN, H, R),
        randn(2, SEQ_LEN, R),
    )


def test_intervals_are_those_of_full_window_and_compression(row, chunked, randn):
    q, k, v, q_rope, k_rope = row
    end_BT = torch.arange(1, SEQ_LEN + 1).expand(2, -1)
    ropes = {"q_rope": q_rope, "k_rope": k_rope}
    o, _ = cached_attention(q, k, v, torch.zeros_like(end_BT), end_BT, **ropes)
    torch.testing.assert_close(o, full_attention(q, k, v, q_rope=q_rope, k_rope=k_rope))
    o, _ = cached_attention(q, k, v, (end_BT - 7).clamp(min=0), end_BT, **ropes)
    torch.testing.assert_close(o, window_attention(q, k, v, window=7, q_rope=q_rope, k_rope=k_rope))
    k, v, k_rope = (x[:, :12].contiguous() for x in (k, v, k_rope))  # 12 slots of stride 4
    end_BT = (end_BT - 6 + 4) // 4
    o, lse = cached_attention(q, k, v, torch.zeros_like(end_BT), end_BT, q_rope=q_rope, k_rope=k_rope)
    whole = compression_attention(q, k, v, block=6, stride=4, q_rope=q_rope, k_rope=k_rope)
    torch.testing.assert_close((o, lse), whole)
    assert (lse[:, 0] == -torch.inf).all()
    assert (o[:, 0] == 0).all()


@pytest.mark.parametrize("query_group", [1, 2, 4])
def test_choice_and_selection_are_those_of_whole_rows(row, chunked, query_group):
    q, k, v, q_rope, k_rope = row
    pooled, pooled_rope = k[:, :23], k_rope[:, :23]  # stride 2
    grid = {"compression_block": 4, "compression_stride": 2, "selection_block": 8, "n_init": 1, "n_local": 2}
    ropes = {"q_rope": q_rope, "k_rope": pooled_rope}
    lse = compression_attention(q, pooled, v[:, :23], block=4, stride=2, **ropes)[1]
    whole = choose_blocks(q, pooled, lse, n_selected=4, query_group=query_group, **grid, **ropes)
    whole_BTKS = whole.repeat_interleave(query_group, 1)[:, :SEQ_LEN]
    previous = torch.full((2, K, 4), -1, dtype=torch.int32)
    for lo, hi in ((0, 1), (1, 7), (7, 8), (8, 37), (37, SEQ_LEN)):
        at = torch.arange(lo, hi).expand(2, -1)
        part = {"q_rope": q_rope[:, lo:hi], "k_rope": pooled_rope}
        chosen = cached_choose_blocks(
            q[:, lo:hi], pooled, lse[:, lo:hi], at, previous, query_group=query_group, **grid, **part
        )
        assert torch.equal(chosen, whole_BTKS[:, lo:hi])
        previous = chosen[:, -1].contiguous()
        o = cached_selection_attention(
            q[:, lo:hi], k, v, chosen, at, selection_block=8, q_rope=q_rope[:, lo:hi], k_rope=k_rope
        )
        expected = selection_attention(
            q, k, v, whole, selection_block=8, query_group=query_group, q_rope=q_rope, k_rope=k_rope
        )
        torch.testing.assert_close(o, expected[:, lo:hi])


def test_groups_may_share_a_head_of_the_cache(randn):
    """Latents: four groups choose, two heads are kept."""
    q, k = randn(1, 3, 8, D), randn(1, 12, 2, D)
    at = torch.tensor([[21, 22, 23]])
    wide = k.repeat_interleave(2, 2)
    lse = cached_attention(q, k, k, torch.zeros_like(at), torch.tensor([[10, 11, 11]]))[1]
    grid = {"compression_block": 2, "compression_stride": 2, "selection_block": 4, "n_init": 0, "n_local": 1}
    previous = torch.full((1, 4, 3), -1, dtype=torch.int32)
    chosen = cached_choose_blocks(q, k, lse, at, previous, **grid)
    assert torch.equal(chosen, cached_choose_blocks(q, wide, lse, at, previous, **grid))
    assert not torch.equal(chosen[:, :, 0], chosen[:, :, 1])
    tokens = randn(1, 24, 2, D)
    o = cached_selection_attention(q, tokens, tokens, chosen, at, selection_block=4)
    expanded = tokens.repeat_interleave(2, 2)
    torch.testing.assert_close(o, cached_selection_attention(q, expanded, expanded, chosen, at, selection_block=4))


def test_what_does_not_agree_is_refused(randn):
    q, k, at = randn(2, 3, 4, D), randn(2, 8, 2, D), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"end_BT must be integers \[2, 3\]; found torch.float64 \[2, 3\]"):
        cached_attention(q, k, k, at, at.double())
    with pytest.raises(ValueError, match=r"chosen_BTKS must be int32 \[2, 3, K, S\]; found torch.int64 \[2, 3, 2, 4\]"):
        cached_selection_attention(q, k, k, torch.zeros(2, 3, 2, 4).long(), at, selection_block=4)
    with pytest.raises(ValueError, match="found H=4, K=3, J=2"):
        cached_selection_attention(q, k, k, torch.zeros(2, 3, 3, 4).int(), at, selection_block=4)
    grid = {"compression_block": 2, "compression_stride": 2, "selection_block": 4}
    with pytest.raises(ValueError, match=r"previous_BKS must be int32 \[2, K, S\]"):
        cached_choose_blocks(q, k, at.double()[..., None].expand(2, 3, 4), at, at, **grid)


# (T, H, J, D, V, R): new tokens, query heads, heads of the cache; V = 0: the values are the keys
SHAPES = [
    (1, 4, 2, 16, 24, 0),
    (3, 3, 1, 24, 0, 16),
    (4, 6, 2, 40, 16, 8),
    (2, 32, 1, 16, 0, 16),
    (2, 4, 4, 16, 16, 0),
]
LONG = [
    (17, 4, 2, 16, 24, 0),
    (40, 6, 1, 24, 0, 16),
    (100, 4, 4, 20, 0, 8),
    (100, 16, 2, 16, 16, 0),
]
REAL = [
    (1, 16, 1, 224, 0, 32),
    (1, 16, 4, 64, 64, 0),
    (7, 16, 1, 448, 0, 64),
    (16, 16, 1, 224, 0, 32),
    (3, 64, 4, 128, 128, 0),
]


# And the slots; ansa_340m, its latent as 2 heads and 4, full_340m, MLA of DeepSeek's width
REAL_LONG = [
    ((300, 16, 1, 224, 0, 32), 8_192),
    ((1000, 16, 1, 224, 0, 32), 32_768),
    ((1000, 16, 2, 112, 0, 32), 8_192),
    ((300, 16, 4, 56, 0, 32), 16_384),
    ((1000, 16, 4, 64, 64, 0), 32_768),
    ((300, 16, 1, 448, 0, 64), 8_192),
]


def near(found, expected, bound):
    """Relative RMS, and the same infinities."""
    assert torch.equal(found.isinf(), expected.isinf())
    found, expected = (x.double().masked_fill(expected.isinf(), 0.0) for x in (found, expected))
    assert (found - expected).norm() <= bound * max(1.0, expected.norm()), (found - expected).norm() / expected.norm()


def cache_of(shape, n, randn, dtype, device):
    """q, k, v, q_rope, k_rope of three rows over n slots; strides of the cache are those of a longer one."""
    T, H, J, D, V, R = shape
    made = randn(3, T, H, D), randn(3, n + 5, J, D)[:, :n], randn(3, n, J, V or D), randn(3, T, H, R), randn(3, n, R)
    q, k, v, q_rope, k_rope = (x.to(device, dtype) for x in made)
    return q, k, v if V else k, *((q_rope, k_rope) if R else (None, None))


def check_attention(shape, n, randn, poisoned, dtype=torch.float32, device="cpu", bound=1e-5):
    q, k, v, q_rope, k_rope = cache_of(shape, n, randn, dtype, device)
    ends = torch.tensor([[0], [n - shape[0]], [n // 3]], device=device) + torch.arange(shape[0], device=device)
    ropes = {"q_rope": q_rope, "k_rope": k_rope}
    wide = {name: x if x is None else x.double() for name, x in ropes.items()}
    for first in (torch.zeros_like(ends), (ends - n // 5).clamp(min=0)):
        expected = cached_attention(q.double(), k.double(), v.double(), first, ends, **wide, impl="reference")
        with poisoned():
            found = cached_attention(q, k, v, first, ends, **ropes, impl="triton")
        near(found[0], expected[0], bound)
        near(found[1], expected[1], bound)
        again = found if device == "cpu" else cached_attention(q, k, v, first, ends, **ropes, impl="triton")
        assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))


def check_choice(shape, n, grid, randn, poisoned, groups, places, dtype=torch.float32, device="cpu"):
    """chosen and the rest of the arguments; float64 may choose otherwise only where importances are nearly equal."""
    q, k, _, q_rope, k_rope = cache_of(shape, n, randn, dtype, device)
    ends = torch.tensor([[1], [n * grid["compression_stride"] - shape[0]], [n]], device=device)
    at = ends + torch.arange(shape[0], device=device)
    ropes = {"q_rope": q_rope, "k_rope": k_rope}
    wide = {name: x if x is None else x.double() for name, x in ropes.items()}
    slots = ((at + 1 - grid["compression_block"]) // grid["compression_stride"] + 1).clamp(0, n)
    lse = cached_attention(q.double(), k.double(), k.double(), slots * 0, slots, **wide, impl="reference")[1]
    previous = torch.arange(places, device=device, dtype=torch.int32).expand(3, groups, -1)
    expected = cached_choose_blocks(q.double(), k.double(), lse, at, previous, **wide, **grid, impl="reference")
    with poisoned():
        found = cached_choose_blocks(q, k, lse.float(), at, previous, **ropes, **grid, impl="triton")
    return found, expected


GRIDS = [
    ({"compression_block": 16, "compression_stride": 16, "selection_block": 16, "query_group": 4}, 5),
    ({"compression_block": 8, "compression_stride": 4, "selection_block": 16, "query_group": 1}, 6),
    ({"compression_block": 8, "compression_stride": 2, "selection_block": 4, "query_group": 2, "n_init": 0}, 3),
]


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_interpreted(shape, randn, poisoned):
    check_attention(shape, 50, randn, poisoned)


@pytest.mark.thinned(2)
@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize("shape", LONG)
def test_attention_of_long_pieces_interpreted(shape, randn, poisoned):
    """In float16, whose tiles have up to 128 rows; in float32, where they have 16."""
    check_attention(shape, 150, randn, poisoned, torch.float16, bound=1e-3)
    if shape[0] < 100:
        check_attention(shape, 90, randn, poisoned)


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize(("grid", "places"), GRIDS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_choice_interpreted(shape, grid, places, randn, poisoned):
    groups = 3 if shape[1] == 3 else 2
    found, expected = check_choice(shape, 45, grid, randn, poisoned, groups, places)
    assert torch.equal(found, expected)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.interp
def test_as_many_splits_as_there_can_be_interpreted(randn, poisoned, monkeypatch):
    from zoo.kernels.decode import op

    monkeypatch.setattr(op, "_n_splits", lambda *_: op.MAX_SPLITS)
    check_attention((1, 4, 1, 24, 0, 16), 16 * op.MAX_SPLITS + 5, randn, poisoned)


@pytest.mark.interp
@pytest.mark.parametrize(("rows", "few"), [(4, True), (5, False)])
def test_rows_of_all_heads_are_few_or_not(rows, few, randn, monkeypatch):
    """Two latent heads: eight query tiles, and ten."""
    from zoo.kernels.decode import op

    tiles, asked = op._tiles, []
    monkeypatch.setattr(op, "_tiles", lambda *given: asked.append(given[-1]) or tiles(*given))
    q, k = randn(rows, 1, 4, 16, dtype=torch.float32), randn(rows, 20, 2, 16, dtype=torch.float32)
    first = torch.zeros(rows, 1, dtype=torch.int64)
    cached_attention(q, k, k, first, first + 20, impl="triton")
    assert asked == [few]


@pytest.mark.interp
@pytest.mark.long
def test_choice_of_several_tiles_interpreted(randn, poisoned, monkeypatch):
    from zoo.kernels.decode_choice import op

    monkeypatch.setattr(op, "MAX_TILE", 16)
    sizes = (SHAPES[1], 40, 3), (SHAPES[0], 75, 2), (SHAPES[0], 40, 2)  # two tiles of selection blocks or three
    for (grid, places), (shape, n, groups) in zip(GRIDS, sizes, strict=True):
        found, expected = check_choice(shape, n, grid, randn, poisoned, groups, places)
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.interp
@pytest.mark.parametrize(("shape", "n", "i_grid"), [(LONG[0], 45, 0), ((33, 2, 1, 16, 0, 0), 50, 2)])
def test_choice_of_long_pieces_interpreted(shape, n, i_grid, randn, poisoned, monkeypatch):
    """In runs of 16 tokens, which begin within a group of queries in some rows."""
    from zoo.kernels.decode_choice import op

    monkeypatch.setattr(op, "WORKSPACE_BYTES", 4)
    grid, places = GRIDS[i_grid]
    found, expected = check_choice(shape, n, grid, randn, poisoned, shape[2], places)
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize(
    "shape", [*SHAPES[:2], pytest.param(SHAPES[2], marks=pytest.mark.long), (1, *SHAPES[3][1:]), SHAPES[4]]
)
def test_selection_interpreted(shape, randn, poisoned):
    check_selection(shape, 60, 16, 2, randn, poisoned)


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize(
    ("shape", "query_group"),
    [(LONG[0], 4), (LONG[1], 1), pytest.param(LONG[1], 2, marks=pytest.mark.long), ((100, 4, 1, 20, 0, 8), 4)],
)
def test_selection_of_long_pieces_interpreted(shape, query_group, randn, poisoned):
    check_selection(shape, shape[0] + 60, 16, 2, randn, poisoned, query_group)


def check_selection(
    shape, n, block, places, randn, poisoned, query_group=1, dtype=torch.float32, device="cpu", bound=1e-5
):
    q, k, v, q_rope, k_rope = cache_of(shape, n, randn, dtype, device)
    T, groups = shape[0], max(shape[2], shape[1] // 4)
    at = torch.tensor([[0], [n - T], [n // 3]], device=device) + torch.arange(T, device=device)
    ranked = randn(3, T, groups, -(-n // block)).argsort(-1)[..., :places].to(device)
    chosen = ranked.where(ranked * block <= at[..., None, None], -1).sort(-1, descending=True).values.int()
    first_BT = (torch.arange(T, device=device) - at % query_group).clamp(min=0)
    chosen = chosen.gather(1, first_BT[..., None, None].expand_as(chosen))
    ropes = {"q_rope": q_rope, "k_rope": k_rope}
    wide = {name: x if x is None else x.double() for name, x in ropes.items()}
    inputs = q.double(), k.double(), v.double(), chosen, at
    expected = cached_selection_attention(*inputs, selection_block=block, **wide, impl="reference")
    with poisoned():
        found = cached_selection_attention(q, k, v, chosen, at, selection_block=block, **ropes, impl="triton")
    near(found, expected, bound)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL)
def test_real(shape, randn, poisoned):
    bf16 = {"dtype": torch.bfloat16, "device": "cuda"}
    check_attention(shape, 3000, randn, poisoned, **bf16, bound=4e-3)
    check_selection(shape, 3000, 16, 64, randn, poisoned, **bf16, bound=4e-3)
    check_selection(shape, 3000, 64, 16, randn, poisoned, **bf16, bound=4e-3)
    for grid, places in (
        ({"compression_block": 16, "compression_stride": 16, "selection_block": 16, "query_group": 4}, 64),
        ({"compression_block": 32, "compression_stride": 16, "selection_block": 64, "query_group": 1}, 16),
    ):
        found, expected = check_choice(shape, 2000, grid, randn, poisoned, max(4, shape[2]), places, **bf16)
        assert (found != expected).any(-1).float().mean() < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "n"), REAL_LONG)
def test_long_pieces_real(shape, n, randn, poisoned):
    bf16 = {"dtype": torch.bfloat16, "device": "cuda"}
    check_attention(shape, n, randn, poisoned, **bf16, bound=4e-3)
    check_selection(shape, 8_192, 16, 64, randn, poisoned, query_group=4, **bf16, bound=4e-3)
    check_selection(shape, 8_192, 64, 16, randn, poisoned, **bf16, bound=4e-3)
    grid = {"compression_block": 16, "compression_stride": 16, "selection_block": 16, "query_group": 4}
    found, expected = check_choice(shape, n // 16, grid, randn, poisoned, max(4, shape[2]), 64, **bf16)
    assert (found != expected).any(-1).float().mean() < 0.05


def peak(call):
    """What it returns, and the most bytes that it takes of a GPU, its outputs included."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = call()
    torch.cuda.synchronize()
    return found, torch.cuda.max_memory_allocated() - before


@pytest.mark.gpu
@pytest.mark.parametrize("seq_len", [300, 1000])
def test_memory_of_long_pieces(seq_len, randn, monkeypatch):
    from zoo.kernels.decode_choice import op

    shape, n = (seq_len, 16, 1, 224, 0, 32), 32_768
    q, k, _, q_rope, k_rope = cache_of(shape, n, randn, torch.bfloat16, "cuda")
    at = torch.arange(n - seq_len, n, device="cuda").expand(3, -1).contiguous()
    ropes = {"q_rope": q_rope, "k_rope": k_rope, "impl": "triton"}
    (o, lse), most = peak(lambda: cached_attention(q, k, k, at * 0, at + 1, **ropes))
    assert most <= 2 * (o.nbytes + lse.nbytes) + 2**20

    grid = {"compression_block": 16, "compression_stride": 16, "selection_block": 16, "query_group": 4}
    pooled = q, k[:, : n // 16], lse, at, torch.zeros(3, 4, 64, device="cuda", dtype=torch.int32)
    ropes["k_rope"] = k_rope[:, : n // 16]
    chosen, most = peak(lambda: cached_choose_blocks(*pooled, **grid, **ropes))
    assert most <= op.WORKSPACE_BYTES + 4 * chosen.nbytes
    monkeypatch.setattr(op, "WORKSPACE_BYTES", 2**24)
    again, most = peak(lambda: cached_choose_blocks(*pooled, **grid, **ropes))
    assert torch.equal(again, chosen)
    assert most <= 2**24 + 4 * chosen.nbytes + 2**20

    ropes["k_rope"] = k_rope
    o, most = peak(lambda: cached_selection_attention(q, k, k, chosen, at, selection_block=16, **ropes))
    assert most <= 2 * o.nbytes


@pytest.mark.gpu
def test_a_long_cache(randn, poisoned):
    """More blocks than are ranked at once, and offsets beyond 32 bits."""
    grid = {"compression_block": 16, "compression_stride": 16, "selection_block": 16, "query_group": 1}
    shape = (1, 4, 1, 64, 0, 0)
    found, expected = check_choice(shape, 20_000, grid, randn, poisoned, 4, 64, torch.bfloat16, "cuda")
    assert (found != expected).any(-1).float().mean() < 0.1
    q, k = (
        torch.randn(1, 1, 16, 256, device="cuda").bfloat16(),
        torch.randn(1, 2**23 + 99, 1, 264, device="cuda").bfloat16(),
    )
    k, n = k[..., :256], k.shape[1]
    first, end = torch.tensor([[n - 300]], device="cuda"), torch.tensor([[n]], device="cuda")
    found = cached_attention(q, k, k, first, end, impl="triton")[0]
    near(found, cached_attention(q, k[:, -300:], k[:, -300:], first * 0, first * 0 + 300, impl="reference")[0], 4e-3)


@pytest.mark.parametrize(
    ("slots", "others", "width", "select", "long", "expected"),
    [
        (131_072, 32, 256, False, False, 8),  # mla, 32 rows: 256 programs, where 264 run at once
        (131_072, 64, 128, False, False, 8),  # gla
        (32_768, 128, 64, False, False, 4),  # full attention, four heads
        (1024, 128, 128, True, False, 2),  # blocks that were chosen: 256 short programs
        (32_768, 40, 256, False, True, 3),  # a long piece
        (131_072, 400, 256, False, True, 1),
        (300, 1, 256, False, False, 3),  # a short cache
        (32_768, 1, 256, False, False, 128),  # one row: no more of them while they would be short
        (98_304, 1, 256, False, False, 192),
        (131_072, 1, 256, False, False, 256),
        (131_072, 2, 256, False, False, 132),
        (1 << 20, 1, 64, False, False, 256),
    ],
)
def test_splits_fill_the_processors_once(slots, others, width, select, long, expected, monkeypatch):
    from zoo.kernels.decode import op

    monkeypatch.setattr(op, "INTERPRETED", False)
    monkeypatch.setattr(op, "n_processors", lambda device: 132)
    assert op._n_splits.__wrapped__(slots, others, width, select, long, torch.device("cuda")) == expected


@pytest.mark.parametrize(("few", "slots"), [(True, 64), (False, 128)])
def test_few_programs_take_small_tiles(few, slots, monkeypatch):
    """Where blocks are selected they are large in any case. Each list ends with a tile that fits any GPU."""
    from zoo.kernels.decode import op

    monkeypatch.setattr(op, "INTERPRETED", False)
    tiles = op._tiles.__wrapped__(torch.bfloat16, 256, select=False, long=False, few=few)
    assert (tiles[0]["BN"], tiles[-1]["BN"]) == (slots, 16)
    chosen = op._tiles.__wrapped__(torch.bfloat16, 256, select=True, long=False, few=few)
    assert chosen[0]["BN"] == 128
