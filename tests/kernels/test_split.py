"""The cut into heads in Triton against the reference, and the reference against torch by hand."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from zoo.kernels import Heads, Piece, rotate, split_heads

GROUPS = {
    "grouped": (Heads(4, (Piece(16, 16),)), Heads(2, (Piece(16, view=True),)), Heads(2, (Piece(12),))),
    "latent": (Heads(3, (Piece(8), Piece(6, 6))), Heads(2, (Piece(5),)), Heads(1, (Piece(6, view=True),))),
    "partly rotated": (Heads(3, (Piece(10, 4),)), Heads(1, (Piece(3),))),
    "several readers": (
        Heads(3, (Piece(8, readers=2), Piece(6, 6, readers=3))),
        Heads(2, (Piece(10, 6, readers=5),)),
        Heads(1, (Piece(3),)),
    ),
    "rotated but for a view": (Heads(2, (Piece(4, 4), Piece(4, 4, view=True))),),
    "not rotated": (Heads(2, (Piece(4), Piece(3))), Heads(1, (Piece(1),))),
}


def cut(y, angle, groups, impl, **options):
    """The table carries no gradient."""
    if angle is None:
        return tuple(split_heads(y, groups, impl=impl, **options))
    angle = angle if y.dtype == torch.float64 else angle.float()
    return tuple(split_heads(y, groups, angle.cos(), angle.sin(), impl=impl, **options))


def width(groups):
    return sum(group.width for group in groups)


def table(groups, randn, rows, seq_len):
    rotary = max(piece.rotary for group in groups for piece in group.pieces)
    return randn(rows, seq_len, rotary // 2) if rotary else None


def shares_memory(x, y):
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


@pytest.mark.interp
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", GROUPS)
def test_interpreted(name, rows, in_place, randn, agree):
    groups, seq_len = GROUPS[name], 150 if in_place else 7
    angle = table(groups, randn, rows, seq_len)
    agree(lambda y, impl: cut(y.clone(), angle, groups, impl, in_place=in_place), [randn(2, seq_len, width(groups))])


@pytest.mark.interp
def test_many_rows_and_strided_products(randn, agree):
    groups = GROUPS["latent"]
    angle = table(groups, randn, 1, 150)
    agree(lambda y, impl: cut(y[..., 2:-1], angle, groups, impl), [randn(1, 150, width(groups) + 3)])


@pytest.mark.interp
@pytest.mark.parametrize("used", [[0], [1, 3], [2]])
def test_pieces_that_nobody_reads_have_no_gradient(used, randn, agree):
    groups = GROUPS["latent"]
    angle = table(groups, randn, 1, 5)
    agree(lambda y, impl: tuple(cut(y, angle, groups, impl)[i] for i in used), [randn(2, 5, width(groups))])


@pytest.mark.interp
@pytest.mark.parametrize("used", [[0, 4, 9], [1, 2, 3, 7], [5, 6], [10]])
def test_readers_that_do_not_differentiate_add_nothing(used, randn, agree):
    groups = (Heads(3, (Piece(8, readers=2), Piece(6, 6, readers=3))), Heads(2, (Piece(10, 6, readers=5), Piece(3))))
    angle = table(groups, randn, 1, 5)
    agree(lambda y, impl: tuple(cut(y, angle, groups, impl)[i] for i in used), [randn(2, 5, width(groups))])


@pytest.mark.interp
def test_gradients_of_readers_may_lie_differently(randn, agree):
    groups = (Heads(4, (Piece(6, readers=2),)),)

    def read(y, impl):
        one, other = cut(y, None, groups, impl)
        return one.transpose(1, 2).contiguous(), other.square()

    agree(read, [randn(2, 5, width(groups))])


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=pytest.mark.interp)])
def test_readers_share_memory(impl, randn):
    y = randn(1, 5, 12, dtype=torch.float32).requires_grad_()
    pieces = split_heads(y, (Heads(2, (Piece(4, readers=3), Piece(2))),), impl=impl)
    assert len(pieces) == 4
    assert len({piece.data_ptr() for piece in pieces[:3]}) == 1
    assert len({id(piece) for piece in pieces[:3]}) == (1 if impl == "reference" else 3)


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=pytest.mark.interp)])
def test_pieces_are_what_is_asked_for(impl, randn):
    groups = GROUPS["latent"]
    y, angle = randn(2, 5, width(groups), dtype=torch.float32).requires_grad_(), table(groups, randn, 2, 5)
    content, rope, latent, key = cut(y, angle, groups, impl)
    heads = y[..., : 3 * 14].unflatten(-1, (3, 14))
    assert torch.equal(content, heads[..., :8])
    torch.testing.assert_close(rope, rotate(heads[..., 8:], angle.float().cos(), angle.float().sin()))
    assert torch.equal(latent, y[..., 42:52].unflatten(-1, (2, 5)))
    assert torch.equal(key, y[..., 52:].unflatten(-1, (1, 6)))
    assert all(piece.is_contiguous() for piece in (content, rope, latent))
    memory = [shares_memory(piece, y) for piece in (content, latent, key)]
    assert memory == [False, False, True]


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=pytest.mark.interp)])
def test_without_gradients_only_what_is_rotated_is_copied(impl, randn):
    groups = GROUPS["latent"]
    y, angle = randn(2, 5, width(groups), dtype=torch.float32), table(groups, randn, 2, 5)
    memory = [shares_memory(piece, y) for piece in cut(y, angle, groups, impl)]
    assert memory == [True, False, True, True]


@pytest.mark.interp
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", GROUPS)
def test_in_place_are_the_bits_of_copies(name, dtype, randn):
    groups = GROUPS[name]
    angle, made = table(groups, randn, 1, 9), randn(2, 9, width(groups), dtype=dtype).requires_grad_()
    copies = cut(made, angle, groups, "triton")
    grads = [randn(*piece.shape, dtype=dtype) for piece in copies]
    y = made.clone()
    found = cut(y, angle, groups, "triton", in_place=True)
    assert all(torch.equal(a, b) for a, b in zip(found, copies, strict=True))
    assert all(shares_memory(piece, y) for piece in found)
    for _ in range(2):  # the graph is kept, and nothing in it has changed
        kept = torch.autograd.grad(found, made, grads, retain_graph=True)[0]
        assert torch.equal(kept, torch.autograd.grad(copies, made, grads, retain_graph=True)[0])


@pytest.mark.interp
def test_in_place_rotates_the_product_itself(randn):
    groups = GROUPS["latent"]
    y, angle = randn(2, 5, width(groups), dtype=torch.float32), table(groups, randn, 2, 5)
    before = y.clone()
    rope = cut(y, angle, groups, "triton", in_place=True)[1]
    torch.testing.assert_close(
        rope, rotate(before[..., :42].unflatten(-1, (3, 14))[..., 8:], angle.float().cos(), angle.float().sin())
    )
    changed = (y != before).flatten(0, 1).any(0)
    assert changed.nonzero().flatten().tolist() == [14 * head + c for head in range(3) for c in range(8, 14)]


@pytest.mark.interp
@pytest.mark.parametrize("how", ["slice", "expanded", "transposed"])
def test_in_place_copies_what_is_not_contiguous(how, randn, agree):
    """Rows that share memory would be rotated once for each."""
    groups = GROUPS["latent"]
    angle = table(groups, randn, 1, 5)

    def cut_part(y, impl):
        part = {"slice": y[..., 2:-1], "expanded": y[:1, :, 3:].expand(3, -1, -1), "transposed": y[..., 3:].mT}[how]
        before = part.detach().clone()
        pieces = cut(part, angle, groups, impl, in_place=True)
        assert torch.equal(part, before)
        return pieces

    n = width(groups)
    agree(cut_part, [randn(2, n, 8) if how == "transposed" else randn(2, 5, n + 3)])


@pytest.mark.interp
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_in_place_without_gradients(context, randn):
    groups = GROUPS["latent"]
    y, angle = randn(2, 5, width(groups), dtype=torch.float32), table(groups, randn, 2, 5)
    expected = cut(y, angle, groups, "triton")
    with context():
        y = y.clone()
        found = cut(y, angle, groups, "triton", in_place=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(shares_memory(piece, y) for piece in found)


@pytest.mark.interp
def test_what_needs_the_product_as_it_was_is_refused(randn):
    """The backward pass of exp reads its result."""
    groups = GROUPS["latent"]
    x, angle = randn(1, 5, width(groups), dtype=torch.float32).requires_grad_(), table(groups, randn, 1, 5)
    pieces = cut(x.exp(), angle, groups, "triton", in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(piece.sum() for piece in pieces).backward()
    pieces = cut(x.exp(), angle, groups, "triton")
    sum(piece.sum() for piece in pieces).backward()


@pytest.mark.interp
@pytest.mark.parametrize("reentrant", [False, True])
def test_in_place_is_computed_again_under_checkpointing(reentrant, randn):
    groups = GROUPS["latent"]
    x, weight = randn(2, 5, 8, dtype=torch.float32).requires_grad_(), randn(width(groups), 8, dtype=torch.float32)
    angle = table(groups, randn, 1, 5)

    def read(x):
        pieces = cut(torch.nn.functional.linear(x, weight), angle, groups, "triton", in_place=True)
        return sum(piece.square().sum() for piece in pieces)

    expected = torch.autograd.grad(read(x), x)[0]
    checkpoint(read, x, use_reentrant=reentrant).backward()
    assert torch.equal(x.grad, expected)


def test_the_reference_leaves_the_product_alone(randn):
    groups = GROUPS["latent"]
    y, angle = randn(2, 5, width(groups)).requires_grad_(), table(groups, randn, 2, 5)
    before = y.detach().clone()
    found, expected = (cut(y, angle, groups, "reference", in_place=in_place) for in_place in (True, False))
    assert torch.equal(y, before)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, expected, strict=True))


def test_what_does_not_agree_is_refused(randn):
    groups = GROUPS["partly rotated"]
    y, angle = randn(1, 4, 33), randn(1, 4, 2)
    with pytest.raises(ValueError, match=r"the groups have 33 channels; y has 32\."):
        split_heads(y[..., :32], groups, angle.cos(), angle.sin())
    with pytest.raises(ValueError, match=r"must be \[1, 4, 2\], rotary widths equal; found none and none, \{4\}"):
        split_heads(y, groups)
    with pytest.raises(ValueError, match=r"found \[1, 4, 3\] and \[1, 4, 3\]"):
        split_heads(y, groups, randn(1, 4, 3), randn(1, 4, 3))
    with pytest.raises(ValueError, match=r"float32 or float64 and on cpu; found torch\.float16 on cpu"):
        split_heads(y, groups, angle.half(), angle.half())
    with pytest.raises(ValueError, match=r"must be floating, \[B, T, C\], and not empty; found torch\.int64"):
        split_heads(y.long(), groups, angle.cos(), angle.sin())


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2])
def test_gpu(rows, randn, agree):
    latent = (Heads(16, (Piece(64), Piece(32, 32))), Heads(2, (Piece(112),)), Heads(1, (Piece(32, view=True),)))
    grouped = (Heads(16, (Piece(64, 64),)), Heads(4, (Piece(64, view=True),)), Heads(4, (Piece(64),)))
    shared = (Heads(16, (Piece(64, readers=3), Piece(32, 32, readers=2))), Heads(2, (Piece(112),)))
    for groups in (latent, grouped, shared):
        angle = table(groups, randn, rows, 999).cuda()
        tensors = [randn(2, 999, width(groups)).cuda()]
        agree(lambda y, impl, a=angle, g=groups: cut(y, a, g, impl), tensors, bound=4e-3, dtype=torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gpu_in_place(dtype, randn):
    """The bits of copies: no row is written before all of it has been read, whatever the layout of a tile."""
    latent = (
        Heads(16, (Piece(64, readers=2), Piece(32, 32, readers=2))),
        Heads(2, (Piece(112),)),
        Heads(1, (Piece(32, view=True),)),
    )
    grouped = (Heads(16, (Piece(128, 64),)), Heads(4, (Piece(128, view=True),)), Heads(4, (Piece(64),)))
    ragged = (Heads(5, (Piece(7), Piece(6, 6))), Heads(1, (Piece(11),)))
    narrow = (Heads(1, (Piece(2, 2),)),)
    for groups in (latent, grouped, ragged, narrow):
        angle = table(groups, randn, 1, 4099).cuda()
        made = randn(2, 4099, width(groups)).to("cuda", dtype).requires_grad_()
        copies, found = (cut(made.clone(), angle, groups, "triton", in_place=in_place) for in_place in (False, True))
        assert all(torch.equal(a, b) for a, b in zip(found, copies, strict=True))
        assert all(shares_memory(piece, found[0]) for piece in found)
        grads = [randn(*piece.shape).to(piece) for piece in copies]
        a, b = (torch.autograd.grad(pieces, made, grads)[0] for pieces in (found, copies))
        assert torch.equal(a, b)


def functions_of(tensors):
    """The names of the functions that autograd will run, without repeats of a node."""
    nodes = {node for x in tensors if (node := x.grad_fn) is not None}
    new = set(nodes)
    while new := {node for old in new for node, _ in old.next_functions if node is not None} - nodes:
        nodes |= new
    return sorted(node.name() for node in nodes)


@pytest.mark.parametrize(
    ("groups", "cuts"), [(GROUPS["grouped"], 1), (GROUPS["latent"], 2), (GROUPS["partly rotated"][:1], 0)]
)
def test_a_group_that_is_one_piece_copies_no_gradient(groups, cuts, randn):
    angle = table(groups, randn, 1, 5)
    y = randn(2, 5, width(groups), dtype=torch.float32).requires_grad_()
    assert functions_of(cut(y, angle, groups, "reference")).count("SplitWithSizesBackward0") == cuts
