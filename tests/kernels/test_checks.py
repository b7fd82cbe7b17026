"""A call that cannot be right ends in a ValueError that names operation, tensor, what was expected and what found."""

import pytest
import torch

from zoo import kernels


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(*shape, dtype=dtype, device=device)


q, k, v = zeros(2, 8, 4, 6), zeros(2, 8, 2, 6), zeros(2, 8, 2, 5)
other = kernels.Documents.from_starts(torch.ones(1, 8, dtype=torch.bool))


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ((q[0], k, v), {}, r"q_BTHD must have 4 axes; found shape \[8, 4, 6\]"),
        ((q, k[:, :7], v), {}, r"k_BTKD must have T = 8, as q_BTHD; found shape \[2, 7, 2, 6\]"),
        ((q, k[..., :5], v), {}, "k_BTKD must have D = 6, as q_BTHD"),
        ((q, k, v[:, :, :1]), {}, "v_BTKV must have K = 2, as k_BTKD"),
        ((q[:, :, :3], k, v), {}, "query heads must be a multiple of key/value heads; found H=3, K=2"),
        ((q[:, :0], k[:, :0], v[:, :0]), {}, "q_BTHD must not be empty; found T = 0"),
        ((q.int(), k.int(), v.int()), {}, "q_BTHD must be a floating-point tensor; found torch.int32"),
        ((q, k.double(), v), {}, "k_BTKD is torch.float64, but q_BTHD is torch.float32"),
        ((q, k, v.to("meta")), {}, "v_BTKV is on meta, but q_BTHD on cpu"),
        ((q, k, v), {"q_rope": zeros(2, 8, 4, 2)}, "q_rope_BTHR and k_rope_BTR come together; found no k_rope"),
        ((q, k, v), {"q_rope": zeros(2, 8, 4, 2), "k_rope": zeros(2, 8, 3)}, "k_rope_BTR must have R = 2, as q_rope"),
        ((q, k, v), {"documents": other}, r"documents must be for shape \[2, 8\]; found \[1, 8\]"),
        ((q, k, v), {"impl": "cuda"}, "unknown implementation 'cuda'; known: auto, "),
    ],
)
def test_attention_inputs(tensors, options, message):
    with pytest.raises(ValueError, match="full_attention: " + message):
        kernels.full_attention(*tensors, **options)
    with pytest.raises(ValueError, match="window_attention: " + message):
        kernels.window_attention(*tensors, window=2, **options)


@pytest.mark.parametrize("window", [0, -1, 2.0, True])
def test_window(window):
    with pytest.raises(ValueError, match=f"window must be a whole number, at least 1; found {window}"):
        kernels.window_attention(q, k, v, window=window)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 2, "stride": 4}, "block must be at least stride, .*; found 2, 4"),
        ({"block": 4, "stride": 0}, "stride must be a whole number, at least 1; found 0"),
        ({"block": 4, "stride": 2, "documents": other}, r"documents must be for shape \[2, 8\]"),
    ],
)
@pytest.mark.parametrize("pool", ["mean_pool", "gather_blocks"])
def test_pooling(pool, options, message):
    with pytest.raises(ValueError, match=f"{pool}: {message}"):
        getattr(kernels, pool)(k, **options)
    with pytest.raises(
        ValueError, match=r"x must be floating \[B, T, K, D\] or \[B, T, D\]; found torch.float32 \[2, 8\]"
    ):
        getattr(kernels, pool)(k[..., 0, 0], block=4, stride=2)


def test_pooling_several_tensors():
    with pytest.raises(ValueError, match=r"mean_pool: tensors pooled together must have one B, T and device; found .*"):
        kernels.mean_pool([k, k[:, 1:]], block=4, stride=2)
    with pytest.raises(ValueError, match="mean_pool: x must be a tensor, or a sequence of at least one; found none"):
        kernels.mean_pool([], block=4, stride=2)


def test_a_whole_number_as_scale_is_a_float():
    """What a kernel was compiled for is remembered by the value of its numbers, and 2 == 2.0."""
    from zoo.kernels import checks

    assert isinstance(checks.attention("op", {"q_BTHD": q, "k_BTKD": k, "v_BTKV": v}, None, 2)["scale"], float)


def test_slots():
    with pytest.raises(ValueError, match="compression_attention: T = 8 tokens at stride 4 have 2 slots; found N = 8"):
        kernels.compression_attention(q, k, v, block=4, stride=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_group": 3}, "selection_block must be a multiple of query_group, .*; found 8 and 3"),
        ({"selection_block": 6}, "selection_block must be a multiple of compression_stride 4; found 6"),
        ({"compression_block": 6}, "compression_block must be a multiple of compression_stride 4; found 6"),
        ({"n_selected": 2}, "n_selected must be a whole number, at least 3; found 2"),
        ({"n_init": -1}, "n_init must be a whole number, at least 0; found -1"),
        ({"compression_stride": 2}, "T = 8 tokens at stride 2 have 4 slots; found N = 2"),
    ],
)
def test_choice(changes, message):
    options = {"compression_block": 4, "compression_stride": 4, "selection_block": 8, "n_selected": 3} | changes
    with pytest.raises(ValueError, match="choose_blocks: " + message):
        kernels.choose_blocks(q, k[:, :2], zeros(2, 8, 4), **options)


@pytest.mark.parametrize(
    "chosen",
    [zeros(2, 8, 2, 3), zeros(2, 3, 2, 3, dtype=torch.int32), zeros(2, 4, 1, 3, dtype=torch.int32), zeros(2, 8)],
)
def test_chosen(chosen):
    message = r"chosen_BGKS must be int32 \[B=2, G=4, K=2, S\], S at least 1; found"
    with pytest.raises(ValueError, match=message):
        kernels.selection_attention(q, k, v, chosen, selection_block=4, query_group=2)


def test_gated_sum():
    with pytest.raises(ValueError, match="outputs must hold at least one tensor"):
        kernels.gated_sum([], zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"gate_logits_BTHP must have shape \[2, 8, 4, 2\]; found \[2, 8, 4, 3\]"):
        kernels.gated_sum([q, q], zeros(2, 8, 4, 3))
    with pytest.raises(ValueError, match=r"outputs\[1\]_BTHV must have H = 4, as outputs\[0\]_BTHV"):
        kernels.gated_sum([q, k], zeros(2, 8, 4, 2))
