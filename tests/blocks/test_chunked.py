"""Chunks against a mask written out, and their cache; what holds for every pattern is tested with it in other files."""

import pytest
import torch

from zoo.blocks import config_class
from zoo.blocks.base import Context, Step
from zoo.blocks.patterns.chunked_config import Chunked
from zoo.kernels import Documents
from zoo.report.maps import random_visibility, visibility

SIZES = {"n_heads": 4, "n_kv_heads": 2}


def block(chunk: int, **fields):
    return config_class("chunked")(chunk=chunk, **SIZES, **fields)


@pytest.mark.parametrize("chunk", [1, 4, 7, 20, 100])
@pytest.mark.parametrize("seq_len", [1, 7, 8, 40])
def test_map_pairs_and_reach_are_those_of_the_mask(chunk, seq_len):
    mask = [[s <= t and s // chunk == t // chunk for s in range(seq_len)] for t in range(seq_len)]
    assert random_visibility(block(chunk), None, 32, seq_len)["chunked"].bool().tolist() == mask
    pattern = Chunked(chunk=chunk)
    assert pattern.pairs(seq_len) == sum(map(sum, mask))
    assert eval(pattern.pairs_formula, {**dict(pattern), "seq_len": seq_len}) == sum(map(sum, mask))
    for known in [*(1 << s for s in range(seq_len)), (1 << seq_len) - 1, 0b1001001 & ((1 << seq_len) - 1)]:
        reached = pattern.reach(known, seq_len)
        seen = [any(row[s] for s in range(seq_len) if known >> s & 1) for row in mask]
        assert [bool(reached >> t & 1) for t in range(seq_len)] == seen


def test_chunks_begin_with_each_document():
    starts = torch.zeros(1, 30, dtype=torch.bool)
    starts[0, [0, 1, 8, 20, 21, 22]] = True
    documents = Documents.from_starts(starts)
    context = Context.for_tokens(1, 30, documents=documents)
    found = visibility(block(5).build(32), torch.randn(1, 30, 32), context)["chunked"]
    first_T, position_T = documents.start_BT[0].tolist(), documents.position_BT[0].tolist()
    same = lambda s, t: first_T[s] == first_T[t] and position_T[s] // 5 == position_T[t] // 5  # noqa: E731
    assert found.bool().tolist() == [[s <= t and same(s, t) for s in range(30)] for t in range(30)]


def test_row_of_whole_chunks_is_the_rows_of_its_chunks():
    """Bit for bit, with two rows: chunks are cut as rows, and the tokens that are left make shorter ones."""
    built, x_BTC = block(8, rope=False, sinks=True).build(32), torch.randn(2, 21, 32)
    whole = built(x_BTC, Context.for_tokens(2, 21))
    full = config_class("full")(**SIZES, rope=False, sinks=True).build(32)
    full.load_state_dict(built.state_dict())
    parts = [full(part, Context.for_tokens(2, part.shape[1])) for part in x_BTC.split(8, 1)]
    torch.testing.assert_close(whole, torch.cat(parts, 1), rtol=0, atol=1e-6)


PIECES = [1, 1, 2, 3, 4, 89, 50, 1, 40, 9]


@pytest.mark.parametrize("beside", [(), ({"kind": "window", "window": 30},), ({"kind": "full"},)], ids=str)
@pytest.mark.parametrize("chunk", [7, 16, 150, 300])
def test_the_cache_holds_a_chunk_and_any_pieces_give_the_same(chunk, beside):
    """A ring of a chunk; of a wider window beside it; and no ring."""
    patterns = [{"kind": "chunked", "chunk": chunk}, *beside]
    config = config_class("attention")(projection={"kind": "gqa", **SIZES, "score_softcap": 2.0}, patterns=patterns)
    if not beside:
        assert config.cost(32, 200).cache_held_elements == 32 * min(chunk, 200)
    built, x_BTC = config.build(32).double(), torch.randn(2, 200, 32, dtype=torch.float64)
    expected = built(x_BTC, Context.for_tokens(2, 200))
    cache, start_B, parts = built.new_cache(2, 200, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), []
    assert cache.nbytes == 8 * 2 * config.cost(32, 200).cache_held_elements
    for part in x_BTC.split(PIECES, 1):
        parts.append(built(part, Step.after(start_B, part.shape[1], None, not parts), cache))
        start_B = start_B + part.shape[1]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-12)


def test_it_describes_itself():
    assert block(64).resolve(32).describe() == "GQA, chunks of 64"
