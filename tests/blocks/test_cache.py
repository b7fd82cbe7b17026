"""Tokens read through a cache, in pieces of any size, give what the training forward gives."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.blocks import build, config_class
from zoo.blocks.base import Context
from zoo.blocks.cache import Slots, Step
from zoo.kernels import use_implementation

T = 40
LINEAR = ("gated_linear", "lightning", "gated_deltanet", "kda", "mamba2")
PIECES = {
    "at once": [40],
    "by one": [1] * 40,
    "by seven": [7, 7, 7, 7, 7, 5],
    "prompt, then by one": [23] + [1] * 17,
    "uneven": [1, 2, 13, 16, 1, 7],
    "over a long ring": [3, 30, 7],
}


def read(block, x_BTC, pieces, max_len=T, n_new_per_piece=None):
    """What the block gives for x in pieces, and the cache."""
    cache = block.new_cache(len(x_BTC), max_len, dtype=x_BTC.dtype)
    length_B, outputs, at = torch.zeros(len(x_BTC), dtype=torch.int64), [], 0
    for seq_len in pieces:
        step = Step.after(length_B, seq_len, None, fresh=at == 0)
        outputs.append(block(x_BTC[:, at : at + seq_len], step, cache))
        length_B, at = length_B + seq_len, at + seq_len
    return torch.cat(outputs, 1), cache


@pytest.mark.thinned(2)
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_pieces_give_what_the_whole_gives(case, make, noise, pieces):
    block, x = make(*case), noise(2, T, 24)
    expected = block(x, Context.for_tokens(2, T))
    found, _ = read(block, x, pieces)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_prompt_may_end_anywhere(case, make, noise):
    """Before, at and after every border of windows, blocks and groups: one more token, then all the rest at once."""
    block, x = make(*case), noise(1, T, 24)
    expected = block(x, Context.for_tokens(1, T))
    for length in range(1, T - 1):
        for pieces in [[length, 1, T - length - 1]] + [[length, T - length]] * (length % 4 == 1):
            torch.testing.assert_close(read(block, x, pieces)[0], expected, rtol=0, atol=1e-9)


def test_rows_of_different_lengths(case, make, noise):
    """Padding is neither kept nor seen: each row goes on as if it were alone, and one that has ended stays as it is."""
    block, x = make(*case), noise(3, T, 24)
    expected = block(x, Context.for_tokens(3, T))
    cache = block.new_cache(3, T, dtype=torch.float64)
    lengths, length_B = [[9, 20, 1], [14, 3, 0], [1, 1, 1], [0, 1, 1], [2, 15, 5]], torch.zeros(3, dtype=torch.int64)
    for n_new in map(torch.tensor, lengths):
        seq_len = int(n_new.max())
        part = torch.full((3, seq_len, 24), 1e3, dtype=torch.float64)  # padding that would be noticed
        for b in range(3):
            part[b, : n_new[b]] = x[b, length_B[b] : length_B[b] + n_new[b]]
        y = block(part, Step.after(length_B, seq_len, n_new, fresh=int(length_B.max()) == 0), cache)
        for b in range(3):
            rows = slice(int(length_B[b]), int(length_B[b] + n_new[b]))
            torch.testing.assert_close(y[b, : n_new[b]], expected[b, rows], rtol=0, atol=1e-9)
        length_B = length_B + n_new


def test_the_cache_is_as_small_as_promised(case, make):
    fields, part = case
    config = config_class(fields["kind"]).model_validate(fields)
    with torch.device("meta"):
        block = build(config, 24, part)
        for max_len in (1, 3, 5, 16, 40, 200):
            cache = block.new_cache(3, max_len, dtype=torch.bfloat16)
            assert cache.nbytes == 3 * config.cost(24, max_len, part).cache_held_bytes(2)


def test_a_cache_of_rows_shares_their_memory(case, make, noise):
    block, x = make(*case), noise(2, T, 24)
    expected = block(x, Context.for_tokens(2, T))
    cache = block.new_cache(2, T, dtype=torch.float64)
    for b in range(2):
        block(x[b : b + 1, :30], Step.after(torch.zeros(1, dtype=torch.int64), 30, None, True), cache.rows(b, b + 1))
    y = block(x[:, 30:], Step.after(torch.full((2,), 30), 10, None, False), cache)
    torch.testing.assert_close(y, expected[:, 30:], rtol=0, atol=1e-9)


def test_a_cache_may_be_longer_than_what_it_holds(case, make, noise):
    block, x = make(*case), noise(1, T, 24)
    found, _ = read(block, x, [17, 1, 1, 1, 20], max_len=1000)
    torch.testing.assert_close(found, block(x, Context.for_tokens(1, T)), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "patterns",
    [
        [{"kind": "window", "window": 1}],
        [{"kind": "compression", "compression_block": 1, "compression_stride": 1}],
        [{"kind": "compression", "compression_block": 1, "compression_stride": 1, "pooling": "mlp"}],
    ],
    ids=["window", "mean", "mlp"],
)
def test_a_pattern_that_looks_back_to_no_other_token(make, noise, patterns):
    fields = {"kind": "attention", "projection": {"kind": "gqa", "n_heads": 4, "head_dim": 6}, "patterns": patterns}
    block, x = make(fields), noise(2, 20, 24)
    found, _ = read(block, x, [3, 1, 7, 9], 20)
    torch.testing.assert_close(found, block(x, Context.for_tokens(2, 20)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast(case, make, noise, kept):
    """float32 weights, products in bf16: a model as it is trained."""
    block, x = make(*case, dtype=torch.float32), noise(2, T, 24).float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected, cache = block(x, Context.for_tokens(2, T)), block.new_cache(2, T, dtype=kept)
        parts, length_B = [], torch.zeros(2, dtype=torch.int64)
        for part in x.split([20, 1, 9, 1, 9], 1):
            parts.append(block(part, Step.after(length_B, part.shape[1], None, len(parts) == 0), cache))
            length_B = length_B + part.shape[1]
    found = torch.cat(parts, 1)
    assert found.dtype == expected.dtype
    # A choice of blocks may fall otherwise for a few queries, where importances are nearly equal.
    error_BT, size = (found - expected).float().norm(dim=-1), expected.float().norm(dim=-1).mean()
    assert error_BT.median() < 0.02 * size
    assert (error_BT < 0.05 * size).float().mean() > 0.9


def test_slots_keep_the_latest_of_more_than_they_hold():
    slots = Slots.empty({"x": (1,)}, 2, 4, dtype=torch.float64)
    new = torch.arange(20.0, dtype=torch.float64).view(2, 10, 1)
    slots.write_latest({"x": new}, torch.tensor([0, 0]), torch.tensor([10, 3]))
    assert slots.tensors["x"][0, :, 0].tolist() == [8, 9, 6, 7]  # position p in slot p mod 4
    assert slots.tensors["x"][1, :, 0].tolist() == [10, 11, 12, 0]


def test_latents_are_never_made_into_keys(make, noise, monkeypatch):
    """Decoding reads the latents as they are."""
    block = make({"kind": "mla", "n_heads": 4, "head_dim": 6, "rope_dim": 4, "kv_rank": 8})
    x = noise(1, 9, 24)
    expected = block(x, Context.for_tokens(1, 9))
    cache = block.new_cache(1, 9, dtype=torch.float64)
    block(x[:, :8], Step.after(torch.zeros(1, dtype=torch.int64), 8, None, True), cache)
    monkeypatch.setattr(block.projection, "expand", None)
    y = block(x[:, 8:], Step.after(torch.full((1,), 8), 1, None, False), cache)
    torch.testing.assert_close(y, expected[:, 8:], rtol=0, atol=1e-12)


def test_a_weight_that_changes_is_noticed(make, noise):
    """The maps of heads that share one are copied once, and again when the weight is written to or replaced."""
    fields = {"kind": "gla", "n_heads": 4, "n_kv_heads": 2, "n_latent_heads": 1, "head_dim": 6, "rope_dim": 4}
    block, other = (make(fields | {"kv_rank": 8}, seed=seed) for seed in (0, 1))
    x = noise(1, 9, 24)
    read(block, x, [8, 1], 9)
    copies = block.projection.key_up._copied[2]
    read(block, x, [8, 1], 9)
    assert block.projection.key_up._copied[2] is copies
    with torch.no_grad():
        for mine, its in zip(block.parameters(), other.parameters(), strict=True):
            mine.copy_(its)
    torch.testing.assert_close(read(block, x, [8, 1], 9)[0], other(x, Context.for_tokens(1, 9)), rtol=0, atol=1e-12)
    for parameter in block.parameters():
        parameter.data.mul_(0.5)  # which leaves the version as it is
    torch.testing.assert_close(read(block, x, [8, 1], 9)[0], block(x, Context.for_tokens(1, 9)), rtol=0, atol=1e-12)
    block.load_state_dict(make(fields | {"kv_rank": 8}).state_dict(), assign=True)
    torch.testing.assert_close(read(block, x, [8, 1], 9)[0], block(x, Context.for_tokens(1, 9)), rtol=0, atol=1e-12)


class OneDevice(TorchDispatchMode):
    """Refuses tensors that are not on a GPU: a CUDA graph cannot hold a copy from the host's memory."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            assert not isinstance(x, torch.Tensor) or x.is_cuda, f"{function}: {list(x.shape)} on {x.device}"
        return result


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.thinned(2)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
def test_a_step_of_one_token_stays_on_the_device(case, scaling):
    """As a CUDA graph needs it: nothing comes from the host or is read by it, and shapes do not depend on values, which
    tensors without data would not get past. The kernels' references stand for the kernels."""
    fields, part = case
    if scaling and fields["kind"] in LINEAR:
        pytest.skip("nothing is rotated")
    scaled = {"rope_scaling": scaling} if scaling and fields.get("rope", True) else {}  # refused where nothing rotates
    projection = {"projection": fields["projection"] | scaled} if "projection" in fields else scaled
    config = config_class(fields["kind"]).model_validate(fields | projection)
    with FakeTensorMode(), torch.no_grad(), use_implementation("reference"):
        with torch.device("cuda"):
            block = build(config, 24, part)
            cache, length_B, x_BTC = block.new_cache(3, T), torch.zeros(3, dtype=torch.int64), torch.empty(3, 1, 24)
        for n_new_B in (None, length_B + 1):
            with OneDevice():
                y = block(x_BTC, Step.after(length_B, 1, n_new_B, fresh=False), cache)
            assert y.shape == (3, 1, 24)


def test_memory_is_taken_once(case, make, noise):
    """Every tensor of the cache stays where it is, at the size it has, whatever is appended."""
    block, x = make(*case), noise(2, T, 24)
    cache = block.new_cache(2, T, dtype=torch.float64)
    places = [(tensor.data_ptr(), tensor.shape) for tensor in cache.tensors]
    length_B, at = torch.zeros(2, dtype=torch.int64), 0
    for seq_len in (9, 1, 1, 17, 1):
        block(x[:, at : at + seq_len], Step.after(length_B, seq_len, None, fresh=at == 0), cache)
        length_B, at = length_B + seq_len, at + seq_len
        assert [(tensor.data_ptr(), tensor.shape) for tensor in cache.tensors] == places
