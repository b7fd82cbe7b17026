"""Input that no operation asks for: every implementation ignores it alike, with its gradients, or refuses it."""

import math

import pytest
import torch

from zoo.kernels import (
    Documents,
    cached_attention,
    cached_choose_blocks,
    cached_selection_attention,
    choose_blocks,
    compression_attention,
    mean_pool,
    pool_slots,
    rms_norm,
    rotate,
    selection_attention,
    window_attention,
    write_slots,
)
from zoo.kernels.selection import reference as selection_reference

HUGE = [2**31 - 1, 2**28, 2**27, 2**27 + 1, -(2**31)]  # times a block of 16 they overflow int32, some to 0
CHOICES = (
    [0, 1, 3, 5],  # some beyond the row
    [7, 9, -1, -1],  # all of them
    [2, 1, 0, -1],  # some in the future of most queries
    [2, 0, 1, -1],  # not in order
    [-1, -1, 0, 1],  # empty places first
    [-7, 0, -2, 1],
    [0, 0, 1, 1],  # named twice
    HUGE[:4],
    [HUGE[1], 0, HUGE[4], HUGE[2]],
    [-1, -1, -1, -1],
)
PACKED = {"one document": None, "packed": [[3, 20, 17]]}


def results(function, tensors, impl) -> list[torch.Tensor]:
    """The output, and the gradient of every tensor."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    o = function(*leaves, impl=impl)
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(o.dtype)
    return [o.detach(), *torch.autograd.grad((o * weight).sum(), leaves)]


def equal(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5)


def assorted(*shape: int) -> torch.Tensor:
    """int32 [*shape, 4]: the choices in turn, so that one call has them all."""
    all_of_them = torch.tensor(list(CHOICES), dtype=torch.int32)
    return all_of_them[torch.arange(math.prod(shape)) % len(CHOICES)].reshape(*shape, 4)


def check_selection(randn, poisoned, documents, groups: int, first: int) -> None:
    """Against the reference in float64: outputs, and the gradients of queries, keys and values."""
    tensors = [randn(1, 40, heads, 8, dtype=torch.float32) for heads in (4, 2, 2)]
    chosen = assorted(1, 2, groups).transpose(1, 2).roll(first, 1).contiguous()

    def attend(*tensors, impl):
        options = {"selection_block": 16, "query_group": 4, "documents": documents}
        return selection_attention(*tensors, chosen, **options, impl=impl)

    expected = results(attend, [x.double() for x in tensors], "reference")
    assert all(x.isfinite().all() for x in expected)
    with poisoned():
        equal(results(attend, tensors, "triton"), expected)
    if documents is None:
        equal(results(attend, tensors, "sdpa"), expected)


@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
def test_selection(randn, pack, poisoned, lengths):
    documents = lengths and pack(lengths)
    check_selection(randn, poisoned, documents, 10 + (documents.max_documents if documents else 0), 0)


@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize("keys", [pytest.param(16, marks=pytest.mark.long), 32])
def test_tiles_of_several_blocks(randn, poisoned, monkeypatch, keys):
    """A tile may hold several small blocks, in any order, or a part of one."""
    from zoo.kernels.selection import op_by_query

    tile = dict(ROWS=16, KEYS=keys, num_warps=1, num_stages=1)
    tiles = {False: [tile], True: [dict(tile, KEEP=False)]}
    monkeypatch.setattr(op_by_query, "query_tiles", lambda *arguments, backward: tiles[backward])
    check_selection(randn, poisoned, None, 10, 3)


def test_the_reference_is_right_about_a_block_named_twice(randn):
    """Its tokens have twice the weight, which two copies of keys and values have too."""
    q, k, v = (randn(1, 16, 1, 8) for _ in range(3))
    twice = torch.zeros(1, 16, 1, 2, dtype=torch.int32)
    found = selection_attention(q, k, v, twice, selection_block=16, impl="reference")
    once = selection_attention(q, k, v, twice[..., :1], selection_block=16, impl="reference")
    torch.testing.assert_close(found, once)
    mixed = torch.tensor([0, 0, 1], dtype=torch.int32).expand(1, 32, 1, 3)
    q, k, v = (randn(1, 32, 1, 8) for _ in range(3))
    found = selection_attention(q, k, v, mixed, selection_block=16, impl="reference")[0, -1, 0]
    scores = (k[0, :, 0] @ q[0, -1, 0]) * 8**-0.5
    weight = scores.exp() * torch.tensor([2.0] * 16 + [1.0] * 16, dtype=torch.float64)
    torch.testing.assert_close(found, weight @ v[0, :, 0] / weight.sum())


def test_places_that_no_block_fills_cost_nothing(randn, pack, monkeypatch):
    """A row of 64 tokens has four blocks; a choice of 32 gathers no more than four."""
    gathered, attend = [], selection_reference.attend
    monkeypatch.setattr(
        selection_reference, "attend", lambda q, k, *rest: gathered.append(k.shape[3]) or attend(q, k, *rest)
    )
    q, k, v = (randn(1, 64, 2, 8) for _ in range(3))
    documents = pack([[40, 24]])
    few = torch.tensor([0, 1, 2, -1], dtype=torch.int32).expand(1, 64, 2, 4)
    many = torch.nn.functional.pad(few, (0, 28), value=-1)
    outputs = [selection_attention(q, k, v, x, selection_block=16, documents=documents) for x in (few, many)]
    torch.testing.assert_close(*outputs)
    assert gathered == [64, 48]


@pytest.mark.interp
def test_cached_attention(randn, poisoned):
    """Slots outside the cache are none."""
    q, k, v = (randn(1, 6, heads, 8, dtype=torch.float32) for heads in (4, 2, 2))
    first = torch.tensor([[-5, 0, 3, 9, -(2**40), 2]])
    end = torch.tensor([[3, 99, 2**40, 12, 2, -3]])
    expected = cached_attention(q.double(), k.double(), v.double(), first, end, impl="reference")
    inside = cached_attention(q, k, v, first.clamp(0, 6), end.clamp(0, 6), impl="reference")
    with poisoned():
        equal(cached_attention(q, k, v, first, end, impl="triton"), expected)
    equal(inside, expected)


@pytest.mark.interp
@pytest.mark.parametrize(("at", "tokens"), [([-20, 22, 90], 2), pytest.param([-3, 30], 17, marks=pytest.mark.long)])
def test_cached_selection(randn, poisoned, at, tokens):
    """Positions before, in and after the cache."""
    q, k, v = (randn(len(at), n, heads, 8, dtype=torch.float32) for n, heads in ((tokens, 2), (40, 2), (40, 2)))
    chosen, position = assorted(len(at), tokens, 2), torch.tensor(at)[:, None] + torch.arange(tokens)
    wide = (q.double(), k.double(), v.double())
    expected = cached_selection_attention(*wide, chosen, position, selection_block=16, impl="reference")
    with poisoned():
        found = cached_selection_attention(q, k, v, chosen, position, selection_block=16, impl="triton")
    equal([found], [expected])
    assert (found[0, 0] == 0).all()  # before the first token: nothing is seen


@pytest.mark.interp
def test_cached_choice(randn, poisoned):
    """Positions before, in and after the cache, or not consecutive: the first of a row says all."""
    at = torch.tensor([-3, 37, 90])[:, None]
    q, k, lse = (x.float() for x in (randn(3, 5, 2, 8), randn(3, 5, 2, 8), randn(3, 5, 2)))
    previous = torch.tensor([0, 1, 9], dtype=torch.int32).expand(3, 2, 3).contiguous()
    options = {"compression_block": 8, "compression_stride": 8, "selection_block": 16, "query_group": 4}
    position = at + torch.arange(5)
    expected = cached_choose_blocks(q, k, lse, position, previous, **options, impl="reference")
    for positions in (position, torch.cat((at, torch.tensor([999, -7, 0, 2**40]).expand(3, -1)), 1)):
        for impl in ("reference", "triton"):
            with poisoned():
                found = cached_choose_blocks(q, k, lse, positions, previous, **options, impl=impl)
            assert torch.equal(found, expected), impl


@pytest.mark.slow
@pytest.mark.interp
def test_scores_that_are_no_numbers_choose_nothing(randn, poisoned):
    """A diverged model: NaN counts as 0 for every implementation, so the forced blocks are chosen in any case."""
    q, k = randn(1, 48, 2, 8).float(), randn(1, 6, 1, 8).float()
    q[:, 40:] = torch.nan
    k[:, 2] = torch.nan
    lse = torch.zeros(1, 48, 2)
    options = {"compression_block": 8, "compression_stride": 8, "selection_block": 8, "n_selected": 4}
    options["query_group"] = 8
    expected = choose_blocks(q, k, lse, **options, impl="reference")
    with poisoned():
        assert torch.equal(choose_blocks(q, k, lse, **options, impl="triton"), expected)
    assert expected[0, -1, 0].tolist() == [0, 1, 4, 5]  # forced, and of the others the lowest
    position, previous = torch.arange(48)[None], torch.full((1, 1, 4), -1, dtype=torch.int32)
    del options["n_selected"]
    for impl in ("reference", "triton"):
        with poisoned():
            found = cached_choose_blocks(q, k, lse, position, previous, **options, impl=impl)
        assert torch.equal(found[:, ::8], expected), impl


@pytest.mark.interp
@pytest.mark.parametrize("at", [-9, -1, 3, 50])
def test_writing(randn, at):
    """Positions that are negative, or not consecutive: slots are taken mod N, from the first position of a row."""
    new = randn(2, 3, 2, 4).float()
    written = []
    for impl in ("reference", "triton"):
        for positions in ([at, at + 1, at + 2], [at, 999, at - 4]):
            kept = torch.zeros(2, 5, 2, 4)
            write_slots([kept], [new], torch.tensor([positions]), impl=impl)
            written.append(kept)
    assert all(torch.equal(kept, written[0]) for kept in written)
    assert torch.equal(written[0][:, [(at + i) % 5 for i in range(3)]], new)


@pytest.mark.interp
@pytest.mark.parametrize(("start", "new"), [(0, 4), (-6, 4), (60, 4), (3, 99), (3, -4)])
def test_pooling_blocks_that_have_no_slot(randn, start, new):
    kept, found = randn(1, 8, 2, 4).float(), []
    for impl in ("reference", "triton"):
        pooled = torch.zeros(1, 3, 2, 4)
        pool_slots([kept], [pooled], torch.tensor([start]), torch.tensor([new]), 4, block=4, stride=2, impl=impl)
        found.append(pooled)
    torch.testing.assert_close(*found)


@pytest.mark.interp
def test_a_window_wider_than_any_integer_of_the_gpu(randn):
    tensors = [randn(1, 9, 2, 8, dtype=torch.float32) for _ in range(3)]
    for impl in ("reference", "triton"):
        found = window_attention(*tensors, window=2**40, impl=impl)
        torch.testing.assert_close(found, window_attention(*tensors, window=9, impl="reference"))


def test_documents_that_do_not_begin_where_they_say():
    for rows in ([[0, 0, 3]], [[0, 2, 2]], [[-1, 0, 0]], [[1, 1, 1]], [[0, 1, 0]], [[0, 0, 2**20]]):
        with pytest.raises(ValueError, match="the index of the first token of its document; row 0 does not"):
            Documents(torch.tensor(rows, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="max_documents is 1, but a row holds 2 documents"):
        Documents(torch.tensor([[0, 0, 2]], dtype=torch.int32), 1)
    assert Documents(torch.tensor([[0, 0, 2]], dtype=torch.int32), 2).position_BT.tolist() == [[0, 1, 0]]


zeros = torch.zeros
at = torch.arange(2)[None]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: write_slots([zeros(1, 4, 2)], [zeros(1, 2, 3)], at), r"kept \[B, N, ...\] and new alike"),
        (lambda: write_slots([zeros(1, 4, 2)], [zeros(2, 2, 2)], at), r"kept \[B, N, ...\] and new alike"),
        (
            lambda: write_slots([zeros(1, 4, 2)] * 2, [zeros(1, 2, 2)], at),
            "must be as many, one or more; found 2 and 1",
        ),
        (
            lambda: write_slots([zeros(1, 4, 2)], [zeros(1, 2, 2)], at.float()),
            r"position_BT must be .*int64 \[1 or 1, 2",
        ),
        (lambda: write_slots([zeros(1, 4, 2)], [zeros(1, 2, 2)], at[:, :1]), "position_BT must be"),
        (lambda: write_slots([zeros(1, 4, 2)], [zeros(1, 2, 2)], at, at), "wanted_BT must be torch.bool"),
        (lambda: write_slots([zeros(1, 4, 2)], [zeros(1, 2, 2).int()], at), "must be floating-point tensors"),
        (lambda: pool_slots([zeros(1, 4, 2)], [zeros(1, 4, 2)], at[0], None, 1, block=2, stride=2), r"integers \[1\]"),
        (lambda: pool_slots([zeros(1, 4, 2)], [zeros(1, 4, 2)], at[0, :1], None, 0, block=2, stride=2), "seq_len must"),
        (
            lambda: pool_slots([zeros(1, 4, 2)], [zeros(1, 4, 2)], at[0, :1], None, 1, block=2, stride=4),
            "block must be",
        ),
        (
            lambda: rotate(zeros(1, 2, 4).int(), zeros(1, 2, 2), zeros(1, 2, 2)),
            "x must be floating, cos and sin float32",
        ),
        (
            lambda: rotate(zeros(1, 2, 4), zeros(1, 2, 2).half(), zeros(1, 2, 2).half()),
            "cos and sin float32 or float64",
        ),
        (lambda: rotate(zeros(1, 0, 4), zeros(1, 0, 2), zeros(1, 0, 2)), r"x must be \[B, T, \(heads,\) D\]"),
        (lambda: rms_norm(zeros(1, 2, 4).int(), zeros(4), eps=1e-6), "x and weight must be floating"),
        (lambda: rms_norm(zeros(1, 0, 4), zeros(4), eps=1e-6), "x not empty"),
        (lambda: mean_pool(zeros(1, 2, 1, 4).int(), block=2, stride=2), "x must be floating"),
        (
            lambda: compression_attention(*[zeros(1, 4, 1, 4)] * 3, block=2, stride=2),
            "T = 4 tokens at stride 2 have 2 slots; found N = 4",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.float32, torch.bool])
def test_chosen_blocks_of_another_dtype(randn, dtype):
    q, k, v = (randn(1, 4, 1, 8) for _ in range(3))
    chosen = zeros(1, 4, 1, 1, dtype=dtype)
    with pytest.raises(ValueError, match=rf"chosen_BGKS must be int32 .*; found {dtype}"):
        selection_attention(q, k, v, chosen, selection_block=4)
    with pytest.raises(ValueError, match=rf"chosen_BTKS must be int32 .*; found {dtype}"):
        cached_selection_attention(q, k, v, chosen, torch.arange(4)[None], selection_block=4)
