"""Every operation, forward and all gradients, against the float64 reference, over one grid of shapes."""

from dataclasses import dataclass

import pytest
import torch

from zoo.kernels import (
    cached_attention,
    cached_selection_attention,
    choose_blocks,
    compression_attention,
    full_attention,
    gated_sum,
    mean_pool,
    selection_attention,
    window_attention,
)

pytestmark = pytest.mark.interp


@dataclass(frozen=True)
class Shape:
    """group: query heads a key head. rows: lengths of the documents of each row, a single one where there are none."""

    group: int
    D: int
    V: int
    R: int
    block: int
    rows: tuple[tuple[int, ...], ...]
    K: int = 1
    query_group: int = 1

    def __str__(self):
        documents = "+".join(map(str, self.rows[0]))
        return f"groups of {self.group}, {self.D}+{self.R}/{self.V}, blocks of {self.block}, {documents} tokens"


SHAPES = [
    pytest.param(Shape(1, 32, 48, 0, 16, ((19,), (19,)), K=2), marks=pytest.mark.long),
    Shape(2, 64, 32, 16, 32, ((1, 3, 37),), K=2, query_group=2),
    pytest.param(Shape(3, 96, 96, 0, 64, ((70,),), query_group=4), marks=pytest.mark.long),
    pytest.param(Shape(4, 128, 64, 32, 128, ((1, 1, 133),), query_group=4), marks=pytest.mark.slow),
    Shape(8, 256, 192, 0, 16, ((5,),), query_group=8),  # shorter than a block
    pytest.param(Shape(16, 48, 80, 16, 16, ((9, 1, 20),), query_group=4), marks=pytest.mark.slow),
]
OPERATIONS = ["full", "window", "compression", "selection", "gated sum", "pooling"]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture
def documents(shape, pack):
    return None if all(len(lengths) == 1 for lengths in shape.rows) else pack(shape.rows)


@pytest.fixture
def tensors(shape, randn):
    """q, k, v and the rotary parts, None where there are none."""
    B, T, H = len(shape.rows), sum(shape.rows[0]), shape.K * shape.group
    rotary = [randn(B, T, H, shape.R), randn(B, T, shape.R)] if shape.R else [None, None]
    return [randn(B, T, H, shape.D), randn(B, T, shape.K, shape.D), randn(B, T, shape.K, shape.V), *rotary]


def chosen_at_random(shape: Shape, documents):
    """[B, G, K, 3]: block 0 and one at random, up to the query's own; the third place is empty."""
    B, T = len(shape.rows), sum(shape.rows[0])
    if documents is None:
        first_BG = torch.arange(0, T, shape.query_group).expand(B, -1)
    else:  # unused groups have no tokens
        first_BG = documents.position_BT.gather(1, documents.groups(shape.query_group)[0].long().clamp(min=0))
    own_BGK = (first_BG // shape.block)[..., None].expand(-1, -1, shape.K)
    noise = torch.rand(own_BGK.shape, generator=torch.Generator().manual_seed(3))
    other_BGK = (1 + noise * own_BGK).long()
    other_BGK = torch.where(other_BGK <= own_BGK, other_BGK, -1)
    return torch.stack([own_BGK * 0, other_BGK, own_BGK * 0 - 1], -1).int()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation(name, shape, documents, tensors, randn, agree):
    q, k, *_ = tensors
    chosen = chosen_at_random(shape, documents)
    grid = {"block": shape.block, "stride": shape.block // 2, "documents": documents}

    def compression(q, k, v, q_rope, k_rope, impl):
        k, v, k_rope = (x if x is None else mean_pool(x, **grid, impl=impl) for x in (k, v, k_rope))
        return compression_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, **grid, impl=impl)

    def selection(q, k, v, q_rope, k_rope, impl):
        sizes = {"selection_block": shape.block, "query_group": shape.query_group}
        ropes = {"q_rope": q_rope, "k_rope": k_rope}
        return selection_attention(q, k, v, chosen, **ropes, **sizes, documents=documents, impl=impl)

    def window(q, k, v, q_rope, k_rope, impl):
        return window_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, window=19, documents=documents, impl=impl)

    def full(q, k, v, q_rope, k_rope, impl):
        return full_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, documents=documents, impl=impl)

    if name == "gated sum":
        agree(lambda a, b, logits, impl: gated_sum([a, b], logits, impl=impl), [q, q * 0.5 + 1, randn(*q.shape[:3], 2)])
    elif name == "pooling":
        agree(lambda x, impl: mean_pool(x, **grid, impl=impl), [k])
    else:
        operations = {"full": full, "window": window, "compression": compression, "selection": selection}
        agree(operations[name], tensors)


def test_the_choice_of_blocks(shape, documents, tensors):
    """From float32, as from float64: noise has no near ties."""
    q, k, v, q_rope, k_rope = tensors
    grid = {"block": shape.block, "stride": shape.block // 2, "documents": documents, "impl": "reference"}
    k, v, k_rope = (x if x is None else mean_pool(x, **grid) for x in (k, v, k_rope))
    _, lse = compression_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, **grid)
    sizes = {"compression_block": shape.block, "compression_stride": shape.block // 2, "selection_block": shape.block}
    sizes |= {"n_selected": 4, "query_group": shape.query_group, "documents": documents}
    expected = choose_blocks(q, k, lse, **sizes, q_rope=q_rope, k_rope=k_rope, impl="reference")
    q, k, lse, q_rope, k_rope = (x if x is None else x.float() for x in (q, k, lse, q_rope, k_rope))
    assert torch.equal(choose_blocks(q, k, lse, **sizes, q_rope=q_rope, k_rope=k_rope, impl="triton"), expected)


def test_decoding(shape, tensors):
    """The last token of each row beside the whole row as a cache. Nothing here has a gradient."""
    q, k, v, q_rope, k_rope = tensors
    q, q_rope = q[:, -1:], None if q_rope is None else q_rope[:, -1:]
    B, T = k.shape[:2]
    end = torch.full((B, 1), T)
    chosen = torch.tensor([0, (T - 1) // shape.block]).expand(B, 1, shape.K, 2).int()
    chosen = chosen.masked_fill((chosen == 0) & (torch.arange(2) == 1), -1)

    def results(impl, dtype):
        tensors = [x if x is None else x.to(dtype) for x in (q, k, v, q_rope, k_rope)]
        options = {"q_rope": tensors[3], "k_rope": tensors[4], "impl": impl}
        whole = cached_attention(*tensors[:3], end * 0, end, **options)
        return *whole, cached_selection_attention(*tensors[:3], chosen, end - 1, selection_block=shape.block, **options)

    for found, expected in zip(results("triton", torch.float32), results("reference", torch.float64), strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()
