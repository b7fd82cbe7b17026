"""Writing to a cache and pooling in it: the kernels against the references."""

import pytest
import torch

from zoo.kernels import pool_slots, write_slots


def check_writing(randn, device="cpu", dtype=torch.float32):
    """Entries of one and of two tensors, with padding and over the end of a ring; then the blocks they complete."""
    start_B = torch.tensor([0, 5, 27], device=device)
    for seq_len, n_new_B in ((1, None), (1, torch.tensor([1, 0, 1])), (9, None), (9, torch.tensor([9, 4, 0]))):
        n_new_B = None if n_new_B is None else n_new_B.to(device)
        at = start_B[:, None] + torch.arange(seq_len, device=device)
        wanted = None if n_new_B is None else torch.arange(seq_len, device=device) < n_new_B[:, None]
        for shapes in ([(2, 20), (2, 24)], [(7,)]):
            new = [randn(3, seq_len, *shape).to(device, dtype) for shape in shapes]
            before = [randn(3, 30, *shape).to(device, dtype) for shape in shapes]
            kept = {impl: [x.clone() for x in before] for impl in ("triton", "reference")}
            for impl, tensors in kept.items():
                write_slots(tensors, new, at, wanted, impl=impl)
            assert all(map(torch.equal, *kept.values()))
            assert not torch.equal(kept["triton"][0], before[0])
            for block, stride in ((8, 4), (4, 4), (6, 2)):
                pooled = {impl: [randn(3, 20, *shape).to(device, dtype) * 0 for shape in shapes] for impl in kept}
                for impl, tensors in pooled.items():
                    pool_slots(
                        kept["reference"], tensors, start_B, n_new_B, seq_len, block=block, stride=stride, impl=impl
                    )
                for found, expected in zip(*pooled.values(), strict=True):
                    error, size = (x.double().norm() for x in (found - expected, expected))
                    assert error <= (1e-6 if dtype == torch.float32 else 4e-3) * max(1.0, size)
                assert any(x.any() for x in pooled["triton"]) or seq_len == 1


@pytest.mark.interp
def test_writing_interpreted(randn):
    check_writing(randn)


@pytest.mark.interp
def test_writing_of_any_strides_interpreted(randn):
    """New entries whose channels do not lie side by side."""
    new, at = randn(2, 7, 3, dtype=torch.float32).mT, torch.arange(3)[None]
    found, expected = torch.zeros(2, 5, 7), torch.zeros(2, 5, 7)
    write_slots([found], [new], at, impl="triton")
    write_slots([expected], [new], at, impl="reference")
    assert torch.equal(found, expected)


def test_a_cache_whose_channels_are_apart_is_left_to_the_reference(randn):
    """[B, heads, N, width] in memory: a kernel that sees channels side by side would write to a copy."""
    apart, new, at = torch.zeros(2, 3, 5, 4).transpose(1, 2), randn(2, 1, 3, 4).float(), torch.tensor([[2]])
    with pytest.raises(ValueError, match="channels of an entry must lie side by side in the cache"):
        write_slots([apart], [new], at, impl="triton")
    write_slots([apart], [new], at)
    assert torch.equal(apart[:, 2], new[:, 0])
    start = torch.tensor([1, 1])
    with pytest.raises(ValueError, match="side by side"):
        pool_slots([apart], [torch.zeros(2, 2, 3, 4)], start, None, 1, block=2, stride=2, impl="triton")


@pytest.mark.interp
def test_one_row_of_wanted_serves_all(randn):
    new, at, wanted = randn(3, 4, 7).float(), torch.arange(4)[None], torch.tensor([[True, False, True, False]])
    found, expected = torch.zeros(3, 5, 7), torch.zeros(3, 5, 7)
    write_slots([found], [new], at, wanted, impl="triton")
    write_slots([expected], [new], at, wanted.expand(3, -1), impl="reference")
    assert torch.equal(found, expected)


def test_another_device_is_refused(randn):
    kept, new, at = torch.zeros(1, 5, 7), randn(1, 2, 7).float(), torch.arange(2)[None]
    with pytest.raises(ValueError, match="write_slots: wanted_BT is on meta, but the cache on cpu"):
        write_slots([kept], [new], at, (at > 0).to("meta"))
    with pytest.raises(ValueError, match="pool_slots: start_B is on meta, but the cache on cpu"):
        pool_slots([kept], [kept.clone()], torch.tensor([0]).to("meta"), None, 2, block=2, stride=2)


def test_more_new_tokens_than_slots_are_refused(randn):
    with pytest.raises(ValueError, match="T must be at most the 4 slots; found 5"):
        write_slots([randn(1, 4, 2)], [randn(1, 5, 2)], torch.arange(5)[None])


@pytest.mark.gpu
def test_writing_real(randn):
    check_writing(randn, "cuda", torch.bfloat16)
