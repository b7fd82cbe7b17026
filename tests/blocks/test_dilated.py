"""The dilated window against a mask written out; what holds for every pattern is tested with it in the other files."""

import pytest
import torch

from zoo.blocks import config_class
from zoo.blocks.base import Context, Step
from zoo.blocks.patterns.dilated_config import Dilated
from zoo.kernels import Documents
from zoo.report.maps import random_visibility, visibility


def seen(t: int, s: int, n_keys: int, dilation: int) -> bool:
    return s <= t and (t - s) % dilation == 0 and (t - s) // dilation < n_keys


def block(n_keys: int, dilation: int):
    pattern = {"kind": "dilated", "n_keys": n_keys, "dilation": dilation}
    return config_class("attention")(projection={"kind": "gqa", "n_heads": 4}, patterns=[pattern])


@pytest.mark.parametrize(("n_keys", "dilation"), [(1, 1), (1, 5), (4, 3), (3, 7), (9, 2), (50, 4), (2, 100)])
@pytest.mark.parametrize("seq_len", [1, 2, 7, 40])
def test_map_pairs_and_reach_are_those_of_the_mask(n_keys, dilation, seq_len):
    mask = [[seen(t, s, n_keys, dilation) for s in range(seq_len)] for t in range(seq_len)]
    found = random_visibility(block(n_keys, dilation), None, 32, seq_len)["dilated"]
    assert found.bool().tolist() == mask
    pattern = Dilated(n_keys=n_keys, dilation=dilation)
    assert pattern.pairs(seq_len) == sum(map(sum, mask))
    assert eval(pattern.pairs_formula, {**dict(pattern), "seq_len": seq_len}) == sum(map(sum, mask))
    for s in range(seq_len):
        reached = pattern.reach(1 << s, seq_len)
        assert [reached >> t & 1 for t in range(seq_len)] == [int(row[s]) for row in mask]


def test_documents_do_not_see_each_other():
    starts = torch.zeros(1, 30, dtype=torch.bool)
    starts[0, [0, 1, 8, 20, 21, 22]] = True
    documents = Documents.from_starts(starts)
    built = block(4, 3).build(32)
    found = visibility(built, torch.randn(1, 30, 32), Context.for_tokens(1, 30, documents=documents))["dilated"]
    start_T = documents.start_BT[0].tolist()
    expected = [[seen(t, s, 4, 3) and s >= start_T[t] for s in range(30)] for t in range(30)]
    assert found.bool().tolist() == expected


def test_the_cache_is_a_ring_of_what_a_later_query_may_read():
    cost = block(4, 3).cost(32, 1000)
    assert cost.cache_held_elements == 2 * 32 * (3 * 3 + 1)
    assert cost.cache_nominal_elements == 2 * 32 * 1000
    built, x_BTC = block(4, 3).build(32).double(), torch.randn(2, 200, 32, dtype=torch.float64)
    expected = built(x_BTC, Context.for_tokens(2, 200))
    cache, start_B, parts = built.new_cache(2, 200, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), []
    for part in x_BTC.split([1, 1, 2, 3, 4, 89, 50, 1, 40, 9], 1):
        parts.append(built(part, Step.after(start_B, part.shape[1], None, not parts), cache))
        start_B = start_B + part.shape[1]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-12)


def test_it_describes_itself():
    assert block(4, 3).resolve(32).describe() == "GQA, dilated 4 x 3"
