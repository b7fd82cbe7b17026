"""Documents: the ways to state them, groups of queries, and mistakes."""

from itertools import pairwise

import pytest
import torch

from zoo.kernels import Documents, n_groups, n_slots


def test_two_spellings_agree():
    by_lengths = Documents.from_cu_seqlens(torch.tensor([0, 3, 4, 8, 14, 16]), batch=2, seq_len=8)
    is_start = torch.zeros(2, 8, dtype=torch.bool)
    is_start[0, [0, 3, 4]] = is_start[1, 6] = True  # the first token of row 1 begins one without being marked
    by_starts = Documents.from_starts(is_start)
    expected = [[0, 0, 0, 3, 4, 4, 4, 4], [0, 0, 0, 0, 0, 0, 6, 6]]
    assert by_lengths.start_BT.tolist() == by_starts.start_BT.tolist() == expected
    assert by_lengths.max_documents == by_starts.max_documents == 3
    assert by_starts.position_BT.tolist()[0] == [0, 1, 2, 0, 0, 1, 2, 3]


def test_groups_end_with_their_document():
    documents = Documents.from_cu_seqlens(torch.tensor([0, 3, 4, 8]), batch=1, seq_len=8)
    first_token, group = documents.groups(2)
    assert first_token.tolist() == [[0, 2, 3, 4, 6, -1, -1]]
    assert group.tolist() == [[0, 0, 1, 2, 3, 3, 4, 4]]
    assert n_groups(8, 2, documents) == 7
    assert n_groups(8, 2) == 4


@pytest.mark.parametrize(("seq_len", "stride", "slots"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2)])
def test_n_slots(seq_len, stride, slots):
    assert n_slots(seq_len, stride) == slots


def test_slots_of_neighbours_never_meet():
    """Every split of 12 tokens into documents, every grid: each whole block has a slot of its own."""
    for split in range(2**11):
        is_start = torch.tensor([[1] + [split >> i & 1 for i in range(11)]], dtype=torch.bool)
        documents = Documents.from_starts(is_start)
        ends = [*is_start[0].nonzero()[:, 0].tolist(), 12]
        for block, stride in [(2, 2), (3, 2), (4, 2), (3, 3)]:
            expected = [-1] * n_slots(12, stride)
            for a, end in pairwise(ends):
                for j in range(max(0, (end - a - block) // stride + 1)):
                    assert expected[a // stride + j] == -1
                    expected[a // stride + j] = a + j * stride
            assert documents.slots(block, stride)[0].tolist() == expected


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([1, 8], r"must rise strictly from 0 to B\*T = 8; found \[1, 8\]"),
        ([0, 5, 5, 8], "must rise strictly"),
        ([0, 4, 7], "must rise strictly"),
        ([0, 3, 8], r"may not run over the end of a row of 4 tokens; missing boundaries: \[4\]"),
    ],
)
def test_bad_lengths(ends, message):
    with pytest.raises(ValueError, match=message):
        Documents.from_cu_seqlens(torch.tensor(ends), batch=2, seq_len=4)


def test_bad_documents():
    with pytest.raises(ValueError, match=r"start_BT must be int32 \[B, T\]; found torch.int64 \[2, 3\]"):
        Documents(torch.zeros(2, 3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="max_documents must be at least 1; found 0"):
        Documents(torch.zeros(2, 3, dtype=torch.int32), 0)
    with pytest.raises(ValueError, match=r"must be bool \[B, T\], T at least 1; found torch.int64 \[3\]"):
        Documents.from_starts(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="max_documents is 2, but a row holds 3 documents"):
        Documents.from_starts(torch.ones(1, 3, dtype=torch.bool), max_documents=2)
