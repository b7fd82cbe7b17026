"""`gla`: MLA as a special case, and latent heads that keep to themselves."""

import torch

from zoo.blocks import config_class
from zoo.blocks.base import Context

SIZES = {"n_heads": 4, "head_dim": 6, "rope_dim": 4, "v_head_dim": 5, "kv_rank": 8}


def test_one_latent_head_and_a_key_a_head_is_mla(make, noise):
    mla = make({"kind": "mla", **SIZES})
    gla = make({"kind": "gla", **SIZES, "n_kv_heads": 4, "n_latent_heads": 1}, seed=1)
    gla.load_state_dict(mla.state_dict())
    x_BTC, context = noise(2, 30, 24), Context.for_tokens(2, 30)
    assert torch.equal(mla(x_BTC, context), gla(x_BTC, context))
    gla_cost = config_class("gla")(**SIZES, n_kv_heads=4, n_latent_heads=1).cost(24, 30)
    assert gla_cost == config_class("mla")(**SIZES).cost(24, 30)


def test_defaults_are_gla_2_with_the_cache_of_mla():
    """Zadouri 2025: two latent heads of 2 d_h each, as much in all as MLA's 4 d_h."""
    gla, mla = config_class("gla")(), config_class("mla")()
    projection = gla.grid_point(2048).projection
    assert (projection.n_latent_heads, projection.n_kv_heads, projection.kv_rank) == (2, 16, 4 * 128)
    assert gla.cost(2048, 100).cache_held_elements == mla.cost(2048, 100).cache_held_elements == 100 * (512 + 64)


def test_heads_read_their_own_latent_head_alone(make, noise):
    """K = H = 4, C = 2: changing latent head 1 changes heads 2 and 3; every latent head has its own norm."""
    block = make({"kind": "gla", **SIZES, "n_kv_heads": 4, "n_latent_heads": 2})
    x_BTC, context = noise(1, 12, 24), Context.for_tokens(1, 12)
    before = block.attend(x_BTC, context)[0]
    block.projection.input.weight.data[-8:-4] *= 1.7 + noise(4, 24, seed=3)  # the rotary key has the last four rows
    after = block.attend(x_BTC, context)[0]
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert (before[:, 1:, 2:] - after[:, 1:, 2:]).abs().amax(-1).min() > 0
    _, (raw,) = block.projection(x_BTC, context)
    latent_BTJR = raw["latent"] / block.projection.latent_norm.weight.view(2, 4)
    torch.testing.assert_close(latent_BTJR.square().mean(-1), torch.ones(1, 12, 2).double(), rtol=1e-4, atol=0)


def test_groups_share_a_key(make, noise):
    block = make({"kind": "gla", **SIZES, "n_kv_heads": 2, "n_latent_heads": 2})
    x_BTC, context = noise(1, 12, 24), Context.for_tokens(1, 12)
    _, (raw,) = block.projection(x_BTC, context)
    keys = block.projection.expand(block.projection.rotate(raw, context))
    assert keys.k.shape == (1, 12, 2, 6)
    assert keys.v.shape == (1, 12, 2, 5)
    assert keys.rope.shape == (1, 12, 4)
