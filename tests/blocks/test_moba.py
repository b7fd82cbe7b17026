"""MoBA against sets that are written out; what holds for every pattern is tested with it in the other files."""

import pytest
import torch
from pydantic import ValidationError

from zoo.blocks import config_class
from zoo.blocks.base import Context, Step
from zoo.blocks.patterns.moba_config import MoBA
from zoo.kernels import Documents
from zoo.report.maps import visibility


def built(d_model: int = 24, n_kv_heads: int = 4, seed: int = 0, **fields):
    projection = {"kind": "gqa", "n_heads": 4, "n_kv_heads": n_kv_heads, "head_dim": 6, "rope": False}
    config = config_class("attention")(projection=projection, patterns=[{"kind": "moba", **fields}])
    block = config.build(d_model).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return block


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("block", "n"), [(4, 1), (4, 3), (5, 2), (16, 2), (64, 3)])
def test_a_head_reads_its_own_block_and_those_with_the_best_mean_keys(block, n):
    """The paper's rule, by the products of each query with the means of past blocks; one key for each head."""
    seq_len = 43
    attention, x = built(selection_block=block, n_selected=n), noise(1, seq_len, 24)
    maps = attention.projection.input.weight.split(24)
    q, k = ((x[0] @ weight.T).unflatten(-1, (4, 6)).detach() for weight in maps[:2])
    found = visibility(attention, x, Context.for_tokens(1, seq_len))["moba"]
    for t in range(seq_len):
        expected = torch.zeros(seq_len)
        for h in range(4):
            own = t // block
            scores = {m: float(q[t, h] @ k[m * block : (m + 1) * block, h].mean(0)) for m in range(own)}
            read = {own, *sorted(scores, key=lambda m: -scores[m])[: n - 1]}
            expected += torch.tensor([s <= t and s // block in read for s in range(seq_len)]) / 4
        torch.testing.assert_close(found[t].float(), expected)


def test_pairs_and_reach_are_those_of_the_choice():
    for block, n in ((4, 1), (4, 3), (7, 2), (50, 3)):
        pattern = MoBA(selection_block=block, n_selected=n)
        for seq_len in (1, 6, 28, 41):
            seen = [min(n - 1, t // block) * block + t % block + 1 for t in range(seq_len)]
            assert pattern.pairs(seq_len) == sum(seen)
            assert eval(pattern.pairs_formula, {**dict(pattern), "seq_len": seq_len}) == sum(seen)
            for s in range(seq_len):
                reached = pattern.reach(1 << s, seq_len)
                may = [t >= s and (n > 1 or t // block == s // block) for t in range(seq_len)]
                assert [bool(reached >> t & 1) for t in range(seq_len)] == may


def test_wide_blocks_are_read_in_pieces_of_the_kernels(monkeypatch):
    """256 tokens as two pieces of 128, of which later ones of the own block lie ahead; cached and not."""
    attention, x = built(selection_block=256, n_selected=2), noise(1, 600, 24)
    assert attention.config.patterns[0].pieces == 2
    assert [MoBA(selection_block=size).pieces for size in (16, 96, 128, 192, 512, 300)] == [1, 1, 1, 3, 4, 1]
    expected = attention(x, Context.for_tokens(1, 600))
    with monkeypatch.context() as patched:
        patched.setattr(MoBA, "pieces", property(lambda self: 1))
        torch.testing.assert_close(attention(x, Context.for_tokens(1, 600)), expected)
    cache, start_B, parts = attention.new_cache(1, 600, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), []
    for part in x.split([255, 1, 200, 100, 1, 43], 1):
        parts.append(attention(part, Step.after(start_B, part.shape[1], None, not parts), cache))
        start_B = start_B + part.shape[1]
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_documents_choose_among_their_own_blocks():
    attention, x = built(n_kv_heads=2, selection_block=4, n_selected=2), noise(1, 40, 24)
    starts_BT = torch.zeros(1, 40, dtype=torch.bool)
    starts_BT[0, [0, 3, 19]] = True
    packed = attention(x, Context.for_tokens(1, 40, documents=Documents.from_starts(starts_BT)))
    alone = [attention(part, Context.for_tokens(*part.shape[:2])) for part in x.split([3, 16, 21], 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1))


def test_the_cache_has_the_tokens_and_mean_keys_without_values():
    config = config_class("attention")(
        projection={"kind": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "v_head_dim": 6},
        patterns=[{"kind": "moba", "selection_block": 16}],
    )
    cost = config.cost(32, 100)
    assert cost.cache_nominal_elements == 2 * 14 * 100
    assert cost.cache_held_elements == 2 * 14 * 100 + 2 * 8 * 7
    latent = config_class("attention")(
        projection={"kind": "mla", "n_heads": 4, "kv_rank": 12, "rope_dim": 4, "head_dim": 8},
        patterns=[{"kind": "moba", "selection_block": 16}],
    )
    assert latent.cost(32, 100).cache_held_elements == 16 * 107


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        MoBA(n_selected=0)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        MoBA(n_init=1)
    with pytest.raises(ValidationError, match="must be 1 with moba"):
        config_class("attention")(patterns=[{"kind": "moba"}], share_kv=2)
    assert MoBA().describe() == "MoBA 3 x 512"


@pytest.mark.gpu
@pytest.mark.parametrize(
    "fields", [{"selection_block": 32, "n_selected": 3}, {"selection_block": 256, "n_selected": 2}]
)
def test_kernels_on_a_gpu(fields):
    """Forward, gradients and a cache beside float64 on the CPU; one key for each head, and keys that heads share."""
    for n_kv_heads in (4, 2):
        config = config_class("attention")(
            projection={"kind": "gqa", "n_heads": 4, "n_kv_heads": n_kv_heads, "head_dim": 32},
            patterns=[{"kind": "moba", **fields}],
        )
        exact, generator = config.build(128).double(), torch.Generator().manual_seed(0)
        for parameter in exact.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 11
        single = config.build(128)
        single.load_state_dict({name: x.float() for name, x in exact.state_dict().items()})
        single, x = single.cuda(), noise(2, 700, 128)
        expected = exact(x, Context.for_tokens(2, 700))
        found = single(x.float().cuda(), Context.for_tokens(2, 700, device="cuda"))
        assert (found.double().cpu() - expected).norm() < 1e-3 * expected.norm()
        for y in (expected, found):
            y.square().sum().backward()
        for ours, theirs in zip(single.parameters(), exact.parameters(), strict=True):
            assert (ours.grad.double().cpu() - theirs.grad).norm() < 2e-3 * theirs.grad.norm()
        cache, parts = single.new_cache(2, 700, device="cuda"), []
        start_B = torch.zeros(2, dtype=torch.int64, device="cuda")
        with torch.no_grad():
            for part in x.float().cuda().split([333, 1, 1, 300, 65], 1):
                parts.append(single(part, Step.after(start_B, part.shape[1], None, not parts), cache))
                start_B = start_B + part.shape[1]
        assert (torch.cat(parts, 1).double().cpu() - expected).norm() < 1e-3 * expected.norm()
