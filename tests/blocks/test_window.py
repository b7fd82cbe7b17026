"""The edge of the window, against a mask built by brute force."""

import pytest
import torch

from zoo.blocks.base import Context
from zoo.kernels import Documents

KINDS = {
    "window": {"kind": "window", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6},
    "mla": {"kind": "mla", "n_heads": 4, "head_dim": 6},
    "gla": {"kind": "gla", "n_heads": 4, "head_dim": 6},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 2, 7, 16, 100])
def test_window_equals_a_masked_softmax(kind, window, make, noise):
    block, x_BTC = make(KINDS[kind] | {"window": window}), noise(1, 30, 24)
    context = Context.for_tokens(1, 30, documents=Documents.from_starts((torch.arange(30) % 19 == 0)[None]))
    queries, (raw,) = block.projection(x_BTC, context)
    keys = block.projection.expand(block.projection.rotate(raw, context))
    groups = 4 // keys.k.shape[2]
    scores_HTS = torch.einsum("thd,shd->hts", queries.q[0], keys.k[0].repeat_interleave(groups, 1))
    if keys.rope is not None:
        scores_HTS += torch.einsum("thd,sd->hts", queries.rope[0], keys.rope[0])
    mask = [[s // 19 == t // 19 and t - window < s <= t for s in range(30)] for t in range(30)]
    weights_HTS = (scores_HTS * queries.scale).masked_fill(~torch.tensor(mask), float("-inf")).softmax(-1)
    o_THV = torch.einsum("hts,shv->thv", weights_HTS, keys.v[0].repeat_interleave(groups, 1))
    torch.testing.assert_close(block(x_BTC, context)[0], block.output(o_THV.flatten(1)))


def test_a_window_over_everything_is_full_attention(make, noise):
    window = make(KINDS["window"] | {"window": 30})
    full = make(KINDS["window"] | {"kind": "full"})
    x_BTC, context = noise(2, 30, 24), Context.for_tokens(2, 30)
    torch.testing.assert_close(window(x_BTC, context), full(x_BTC, context))
