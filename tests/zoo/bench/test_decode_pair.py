"""`zoo bench decode-pair`: what it says without a GPU, its table, and on a GPU that it measures."""

import pytest
import torch

from zoo import cli
from zoo.bench import decode_pair


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_needs_a_gpu(capsys):
    assert cli.run(["bench", "decode-pair"]) == 1
    assert "bench decode-pair: needs a CUDA GPU" in capsys.readouterr().err


def test_the_table_states_both_ratios():
    machine = {"gpu": "G", "torch": "2", "triton": "3", "cuda": "13", "date": "2026-11-25"}
    row = {"context": 32768, "batch": 1, "cache_bytes": 18.1e6, "least_us": 24.2, "choosing_us": 40.0, "mean_us": 30.0}
    text = decode_pair.as_markdown(
        {"machine": machine, "command": "c", "rows": [row | {"ratio": 1.24, "ratio_choosing": 1.65}]}
    )
    assert "| 32,768 | 1 | 18.1 | 24.2 | 30.0 | 1.24x | 40.0 | 1.65x |" in text


@pytest.mark.gpu
def test_a_small_pair_is_measured():
    (row,) = decode_pair.measure([4096], [2], say=lambda text: None)
    assert row["cache_bytes"] == 2 * 2 * 256 * (512 + 4096 + 256)
    assert 0 < row["mean_us"] <= row["choosing_us"] * 1.1
