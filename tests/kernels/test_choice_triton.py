"""The choice of blocks in Triton against the float64 reference, and what holds of any choice."""

import math
from dataclasses import dataclass

import pytest
import torch

from zoo.kernels import Documents, choose_blocks, compression_attention
from zoo.kernels.documents import n_slots


@dataclass(frozen=True)
class Case:
    rows: tuple[tuple[int, ...], ...]  # lengths of the documents of each row; one length = documents=None
    H: int = 2
    K: int = 1
    D: int = 16
    R: int = 0
    block: int = 16
    stride: int = 16
    selection_block: int = 16
    n_selected: int = 4
    n_init: int = 1
    n_local: int = 2
    query_group: int = 1


SMALL = {
    "one token": Case(rows=((1,),)),
    "shorter than every block": Case(rows=((9,), (9,)), R=16, query_group=4),
    "overlap of two, 4 to 1": Case(rows=((300,),), H=4, K=2, block=32, stride=16, selection_block=64, query_group=4),
    "overlap of four": Case(rows=((150,), (150,)), H=3, D=24, block=16, stride=4, n_selected=6, query_group=2),
    "blocks longer than selected ones": Case(rows=((200,),), block=32, stride=8, query_group=4, n_local=0),
    "sixteen heads": Case(rows=((150,),), H=16, selection_block=64, block=32, query_group=2, n_selected=3),
    "nothing forced": Case(rows=((190,),), H=20, n_init=0, n_local=0, n_selected=3, query_group=8),
    "all forced": Case(rows=((130,),), n_init=2, n_local=2, query_group=8),
    "more places than blocks": Case(rows=((70,),), R=16, n_selected=9, query_group=4),
    "documents": Case(rows=((90, 1, 49), (140,)), H=4, K=2, block=8, stride=4, selection_block=8, query_group=4),
    "short documents": Case(rows=((1, 1, 5, 3, 17, 1, 9), (30, 1, 6)), block=4, stride=4, selection_block=8),
}
IN_CI = ("sums of sixteen", "documents, overlap", "overlap of more than a block and one")  # the others are long
LONG = {
    "blocks of one size": Case(rows=((250,),), block=4, stride=4, selection_block=4, query_group=4, n_selected=5),
    "overlap": Case(rows=((330,),), block=8, stride=4, selection_block=8, query_group=8, n_selected=4),
    "overlap of blocks alike": Case(rows=((200,),), block=8, stride=4, selection_block=4, query_group=4, n_selected=3),
    "sums of four": Case(rows=((500,), (500,)), H=4, K=2, block=4, stride=2, selection_block=8, query_group=4),
    "sums of eight, overlap of four": Case(rows=((900,),), block=8, stride=2, selection_block=16, query_group=8),
    "sums of four, overlap of five": Case(rows=((500,),), H=3, block=10, stride=2, selection_block=8, query_group=4),
    "sums of sixteen": Case(rows=((900,),), block=1, stride=1, selection_block=16, query_group=8, n_selected=3),
    "documents": Case(
        rows=((179, 1, 20), (200,)), block=4, stride=4, selection_block=4, query_group=4, n_selected=5, H=4, K=2
    ),
    "documents, four to a block": Case(rows=((179, 1, 120), (300,)), block=4, stride=2, selection_block=8),
    "overlap of more than a block and one": Case(rows=((500,),), block=16, stride=2, selection_block=8, query_group=4),
    "thirty-two to a block": Case(rows=((900,),), block=1, stride=1, selection_block=32, query_group=8, n_selected=3),
    "documents, overlap": Case(
        rows=((179, 1, 20), (7, 193)), block=8, stride=2, selection_block=4, query_group=4, n_selected=4
    ),
}
REAL = {
    "the published setting": Case(
        rows=((4000,),), H=64, K=4, D=128, block=32, stride=16, selection_block=64, n_selected=16
    ),
    "ansa": Case(rows=((5000,), (5000,)), H=16, K=4, D=64, R=32, n_selected=64, query_group=4),
    "ansa, packed": Case(rows=((1, 3000, 1999), (5000,)), H=16, K=4, D=64, R=32, n_selected=64, query_group=4),
    "many heads": Case(rows=((1100,),), H=64, K=1, D=192, stride=8, n_selected=128, selection_block=32, query_group=16),
}


def inputs(case: Case, device="cpu", dtype=torch.float32):
    """The arguments of choose_blocks; lse comes from compression attention, in float64."""
    generator = torch.Generator().manual_seed(17)
    B, T = len(case.rows), sum(case.rows[0])
    N = n_slots(T, case.stride)
    shapes = {"q": (T, case.H, case.D), "k": (N, case.K, case.D)}
    if case.R:
        shapes |= {"q_rope": (T, case.H, case.R), "k_rope": (N, case.R)}
    made = {name: torch.randn(B, *s, generator=generator).to(device, dtype) for name, s in shapes.items()}
    documents = None
    if any(len(lengths) > 1 for lengths in case.rows):
        documents = Documents.from_cu_seqlens(torch.tensor([0, *sum(case.rows, ())]).cumsum(0), B, T).to(device)
    q, k = made.pop("q"), made.pop("k")
    _, lse = compression_attention(
        q.double(), k.double(), k.double(), **{name: x.double() for name, x in made.items()},
        block=case.block, stride=case.stride, documents=documents, impl="reference",
    )  # fmt: skip
    return (q, k, lse), {**made, "documents": documents}


def choose(case: Case, tensors, options, impl):
    return choose_blocks(
        *tensors, **options, compression_block=case.block, compression_stride=case.stride,
        selection_block=case.selection_block, n_selected=case.n_selected, n_init=case.n_init, n_local=case.n_local,
        query_group=case.query_group, impl=impl,
    )  # fmt: skip


def both(case: Case, poison, device="cpu", dtype=torch.float32):
    (q, k, lse), options = inputs(case, device, dtype)
    wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    expected = choose(case, (q.double(), k.double(), lse), wide, "reference")
    with poison():
        return choose(case, (q, k, lse.float()), options, "triton"), expected


@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize(  # every second one in the quick run
    "case", [pytest.param(SMALL[name], id=name, marks=[pytest.mark.long] * (i % 2)) for i, name in enumerate(SMALL)]
)
def test_small(case, poisoned):
    found, expected = both(case, poisoned)
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[] if name in IN_CI else pytest.mark.long) for name, case in LONG.items()],
)
def test_long_rows_by_chunks_in_several_runs(case, monkeypatch, poisoned):
    from zoo.kernels.choice import op

    monkeypatch.setattr(op, "SHORT", 4)
    monkeypatch.setattr(op, "MIN_RUN", 32)
    monkeypatch.setattr(op, "WORKSPACE_BYTES", 1)
    found, expected = both(case, poisoned)
    assert torch.equal(found, expected)


def test_runs_cover_all_groups_and_fit_the_workspace():
    from zoo.kernels.choice import op

    for count, rows, per_group, slots, pieces, documents in [
        (16384, 4, 0.25, 4097, 1, False), (65536, 4, 1 / 16, 4100, 4, False), (65536, 8, 1 / 16, 4100, 4, True),
        (1 << 20, 4, 1 / 16, (1 << 16) + 4, 4, False), (3, 1, 0.25, 2, 1, False), (131072, 4, 1 / 32, 4352, 256, False),
    ]:  # fmt: skip
        at = 0
        for g, n, width in op._runs(count, rows, per_group, slots, pieces, documents, op.WORKSPACE_BYTES):
            assert g == at
            assert width % 64 == 0
            own_block = int((g + n - 1) * per_group) // pieces  # of the last group of the run: written to its end
            assert width >= (slots if documents else min(slots, (own_block + 1) * pieces))
            assert n <= op.MIN_RUN or 4 * rows * n * width <= 1.3 * op.WORKSPACE_BYTES
            at += n
        assert at == count


@pytest.mark.interp
def test_ties_go_to_the_lower_index():
    case = Case(rows=((200,),), n_selected=5, query_group=8)
    (q, k, lse), options = inputs(case)
    found = choose(case, (q * 0, k * 0, lse.float()), options, "triton")
    assert found[0, -1, 0].tolist() == [0, 1, 2, 11, 12]


@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_importances_that_are_no_numbers(wrong):
    """A diverged model gets a valid choice, and its NaN in the loss, not a write outside the tensor."""
    case = Case(rows=((300,),), n_selected=4, query_group=4)
    (q, k, lse), options = inputs(case)
    wild = torch.full_like(lse.float(), wrong)
    wild[:, ::7] = math.nan
    found = choose(case, (q, k, wild), options, "triton")
    own_G = torch.arange(0, 300, 4) // 16
    for row, own in zip(found[0, :, 0].tolist(), own_G.tolist(), strict=True):
        taken = [m for m in row if m >= 0]
        assert taken == sorted(set(taken))
        assert {0, own} <= set(taken) <= set(range(own + 1))
        assert len(taken) == min(4, own + 1)


@pytest.fixture
def importances(monkeypatch):
    """importances() is what the reference ranked in the last call: [B, G, K, M], float64."""
    from zoo.kernels.choice import reference

    seen, rank = [], reference.rank_blocks

    def record(importance, *rest):
        seen.append(importance)
        return rank(importance, *rest)

    monkeypatch.setattr(reference, "rank_blocks", record)
    return lambda: torch.cat(seen, 2).transpose(1, 2)


def swapped_among_equals(found, expected, importance) -> torch.Tensor:
    """Whether each row took no block, in the place of an expected one, that counts for less by more than rounding."""

    def chosen(blocks):
        places = torch.where(blocks < 0, importance.shape[-1], blocks).long()
        return importance.new_zeros(*importance.shape[:-1], importance.shape[-1] + 1).scatter(-1, places, 1)[..., :-1]

    taken, wanted = chosen(found) > 0, chosen(expected) > 0
    gained = importance.masked_fill(~taken | wanted, math.inf).min(-1).values
    lost = importance.masked_fill(taken | ~wanted, -math.inf).max(-1).values
    return gained >= lost * (1 - 1e-4)


@pytest.mark.interp
def test_a_swap_among_unequal_blocks_is_seen(importances):
    (q, k, lse), options = inputs(LONG["overlap"])
    expected = choose(LONG["overlap"], (q.double(), k.double(), lse), options, "reference")
    value, row = importances(), expected[0, -1, 0]
    candidates = [m for m in range(1, int(row[-1]) - 1) if m not in row.tolist()]
    wrong = expected.clone()
    wrong[0, -1, 0, 1] = min(candidates, key=lambda m: value[0, -1, 0, m])
    assert swapped_among_equals(expected, expected, value).all()
    assert swapped_among_equals(wrong, expected, value).flatten().tolist() == [True] * (expected.shape[1] - 1) + [False]


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL.values(), ids=REAL.keys())
def test_real(case, poisoned, importances):
    """Where the choice differs from float64's, it is between blocks of nearly the same importance: in few rows."""
    found, expected = both(case, poisoned, "cuda", torch.bfloat16)
    assert (found != expected).any(-1).float().mean() < 1e-3
    assert swapped_among_equals(found, expected, importances()).all()
    taken = found >= 0
    ordered = found.masked_fill(~taken, 1 << 30)
    assert (ordered.diff(dim=-1)[taken[..., 1:]] > 0).all()
    assert torch.equal(taken.sum(-1), (expected >= 0).sum(-1))
