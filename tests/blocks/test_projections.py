"""How many products a projection makes of its input, and that what they give is not copied about."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.blocks.base import Context
from zoo.blocks.cache import Step

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm}
LATENT = {"n_heads": 4, "head_dim": 6, "rope_dim": 4, "kv_rank": 8}


class Products(TorchDispatchMode):
    """Keeps the factors and the result of every product of matrices."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in PRODUCTS:
            self.found.append((*args, result))
        return result

    def of(self, x):
        """Those with a factor in the memory of x."""
        return [product for product in self.found if any(_place(factor) == _place(x) for factor in product[:-1])]


def _place(x):
    return x.untyped_storage().data_ptr()


def new_token(block, x_BTC):
    """The step that appends one token to rows of three, and a cache for it."""
    step = Step.after(torch.full((len(x_BTC),), 3), 1, None, fresh=False)
    return step, block.new_cache(len(x_BTC), 8, dtype=x_BTC.dtype)


def test_the_maps_of_x_are_one_product(grid_case, make, noise):
    """And the gate another, in training as in decoding."""
    block, x, token = make(*grid_case), noise(2, 12, 24), noise(2, 1, 24)
    expected = 1 + (block.gate is not None) + (block.output_gate is not None)
    with Products() as products:
        block(x, Context.for_tokens(2, 12))
        block(token, *new_token(block, token))
    assert len(products.of(x)) == expected
    assert len(products.of(token)) == expected


@pytest.mark.parametrize("kind", ["mla", "gla"])
def test_decoding_absorbs_queries_where_the_product_left_them(kind, make, noise):
    """A copy would be one more kernel in every layer."""
    block, token = make({"kind": kind, **LATENT}), noise(3, 1, 24)
    with torch.no_grad(), Products() as products:
        block(token, *new_token(block, token))
    (made,) = products.of(token)
    absorbed = [product for product in products.of(made[-1]) if product is not made]
    assert [q_HBD.shape for q_HBD, *_ in absorbed] == [(4, 3, 6)]


def test_values_alone_are_kept_for_the_backward(make, noise):
    """Not the product that they are cut from, queries and keys and all."""
    block, x = make({"kind": "window", "n_heads": 4, "n_kv_heads": 1, "head_dim": 6}), noise(2, 12, 24)
    _, (raw,) = block.projection(x, Context.for_tokens(2, 12))
    values = block.projection.expand(raw).v
    assert values.untyped_storage().nbytes() == values.numel() * values.element_size()
    assert torch.equal(values, raw["value"])
