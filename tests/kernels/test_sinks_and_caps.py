"""Attention sinks and capped scores: references against loops, gradients, and kernels against the references."""

import pytest
import torch

from zoo.kernels import cached_attention, full_attention, use_implementation, window_attention
from zoo.kernels.dispatch import choose

T, H, K, D, R, V = 21, 4, 2, 6, 4, 5
CHANGES = [{"softcap": 0.7}, {"sinks": True}, {"sinks": True, "softcap": 3.0}]
WINDOWS = [None, 1, 6]  # None: full attention


def tensors(randn, batch=2, sizes=(T, H, K, D, R, V)):
    """q, k, v, q_rope, k_rope, sinks: scores beyond the caps of `CHANGES`."""
    T, H, K, D, R, V = sizes
    rotary = [randn(batch, T, H, R), randn(batch, T, R)] if R else [None, None]
    return [2 * randn(batch, T, H, D), randn(batch, T, K, D), randn(batch, T, K, V), *rotary, 2 * randn(H)]


def attend(window, change, documents=None, impl="auto"):
    """A function of the six tensors; sinks are left out where `change` has none."""

    def function(q, k, v, q_rope, k_rope, sinks, impl=impl):
        options = {**change, "sinks": sinks if change.get("sinks") else None, "documents": documents, "impl": impl}
        options |= {"q_rope": q_rope, "k_rope": k_rope, "scale": 0.6}
        return (
            full_attention(q, k, v, **options)
            if window is None
            else window_attention(q, k, v, window=window, **options)
        )

    return function


@pytest.mark.thinned(3)
@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_reference_is_the_loops(window, change, packed, randn, pack, naive, chunked):
    rows = [[1, 13, 7], [19, 2]] if packed else [[T], [T]]
    *all_of_q, sinks = tensors(randn)
    found = attend(window, change, pack(rows) if packed else None)(*all_of_q, sinks)
    options = {**change, "sinks": sinks if change.get("sinks") else None}
    sees = (lambda t, g: naive.full(t)) if window is None else (lambda t, g: naive.window(t, window))
    for row, lengths in enumerate(rows):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        for lo, hi in zip([0, *ends], ends, strict=False):
            expected, _ = naive.attention(
                *(x[row, lo:hi] for x in all_of_q[:3]), sees, *(x[row, lo:hi] for x in all_of_q[3:]), 0.6, **options
            )
            torch.testing.assert_close(found[row, lo:hi], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("window", [None, 2])
def test_gradients(window, change, randn, pack, chunked):
    leaves = [x.requires_grad_() for x in tensors(randn, 1, (5, 4, 2, 2, 2, 2))]
    assert torch.autograd.gradcheck(attend(window, change, pack([[2, 3]])), leaves, fast_mode=True)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_decoding_is_full_and_window(change, randn, naive, chunked):
    q, k, v, q_rope, k_rope, sinks = tensors(randn)
    end_BT = torch.arange(1, T + 1).expand(2, -1)
    options = {"scale": 0.6, **change, "sinks": sinks if change.get("sinks") else None}
    for window in WINDOWS:
        first_BT = end_BT * 0 if window is None else (end_BT - window).clamp(min=0)
        o, lse = cached_attention(q, k, v, first_BT, end_BT, q_rope=q_rope, k_rope=k_rope, **options)
        torch.testing.assert_close(o, attend(window, change)(q, k, v, q_rope, k_rope, sinks))
        sees = lambda t, g, first=first_BT[0]: range(int(first[t]), t + 1)  # noqa: E731
        parts = [x[0] for x in (q, k, v)], [x[0] for x in (q_rope, k_rope)]
        torch.testing.assert_close(lse[0], naive.attention(*parts[0], sees, *parts[1], **options)[1])


def test_a_query_without_keys_gives_all_to_the_sink(randn):
    q, k = randn(1, 3, 2, 4), randn(1, 5, 1, 4)
    nothing = torch.zeros(1, 3, dtype=torch.int64)
    o, lse = cached_attention(q, k, k, nothing, nothing, sinks=torch.tensor([0.5, -2.0]).double())
    assert not o.any()
    assert lse[0, 1].tolist() == [0.5, -2.0]


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize(
    ("window", "change", "packed"),
    [(None, CHANGES[2], True), (11, CHANGES[2], True), (None, CHANGES[0], False), (11, CHANGES[1], False)],
    ids=str,
)
def test_interpreted(window, change, packed, randn, pack, agree):
    """Rows of several tiles, groups of three heads, rotary parts; with and without documents."""
    sizes = (36, 4, 2, 16, 8, 24) if packed else (36, 3, 1, 24, 0, 16)
    documents = pack([[1, 14, 2, 19]]) if packed else None
    made = tensors(randn, 1, sizes)
    made[5] = made[5] if change.get("sinks") else None
    agree(attend(window, change, documents), made)


@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize("softcap", [0.3, 50.0, 1e4])
def test_caps_far_above_and_below_the_scores_interpreted(softcap, randn, agree):
    made = [*tensors(randn, 1, (40, 2, 1, 16, 0, 16))[:5], None]
    agree(attend(None, {"softcap": softcap}), made, bound=2e-5 if softcap > 100 else 1e-5)


@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 4, 2, 16, 24, 0), (3, 6, 1, 24, 0, 16), pytest.param((40, 6, 2, 16, 0, 8), marks=pytest.mark.slow)],
    ids=str,
)
def test_decoding_interpreted(shape, change, randn, poisoned):
    """Several splits and one; the last shape is a long piece. V = 0: the values are the keys."""
    T, H, J, D, V, R = shape
    q, k, v = randn(3, T, H, D), randn(3, 90, J, D), randn(3, 90, J, V or D)
    v = v if V else k
    ropes = {"q_rope": randn(3, T, H, R), "k_rope": randn(3, 90, R)} if R else {}
    sinks = 2 * randn(H) if change.get("sinks") else None
    ends = torch.tensor([[0], [90 - T], [30]]) + torch.arange(T)
    options = {"scale": 0.6, **change, "sinks": sinks}
    for first in (ends * 0, (ends - 18).clamp(min=0)):
        expected = cached_attention(q, k, v, first, ends, **ropes, **options, impl="reference")
        low = {name: x.float() for name, x in ropes.items()}
        low_k = k.float()
        with poisoned():
            found = cached_attention(
                q.float(), low_k, v.float() if V else low_k, first, ends, **low, **options, impl="triton"
            )
        for x, y in zip(found, expected, strict=True):
            assert torch.equal(x.isinf(), y.isinf())
            x, y = (z.double().masked_fill(y.isinf(), 0.0) for z in (x, y))
            assert (x - y).norm() <= 1e-5 * y.norm()


@pytest.mark.slow
@pytest.mark.interp
def test_compiled_as_one_graph(randn):
    x = [y.float().requires_grad_() for y in tensors(randn, 1, (20, 2, 1, 16, 16, 16))]
    function = attend(5, CHANGES[2], impl="triton")

    def results(f):
        return [f(*x), *torch.autograd.grad(f(*x).square().sum(), x)]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(results(function), results(compiled), strict=True))


def test_what_cannot_serve_says_why(randn):
    x, sinks = randn(1, 4, 2, 8), randn(2)
    with pytest.raises(ValueError, match=r"'sdpa' .* cannot serve this call: it knows no attention sinks\."):
        full_attention(x, x, x, sinks=sinks, impl="sdpa")
    with use_implementation("sdpa"), pytest.raises(ValueError, match="it knows no cap of scores"):
        full_attention(x, x, x, softcap=3.0)
    options = {"q_rope": None, "k_rope": None, "scale": 1.0, "documents": None, "sinks": sinks, "softcap": 3.0}
    choice = choose("full_attention", "auto", x, x, x, **options)
    assert choice.impl == "reference"
    assert "not sdpa: it knows no attention sinks and no cap of scores" in choice.why


@pytest.mark.parametrize("call", [full_attention, lambda *x, **o: window_attention(*x, window=2, **o)])
def test_wrong_arguments_are_named(call, randn):
    x = randn(1, 4, 2, 8)
    for sinks in (randn(1), randn(2, 1), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match=r"sinks must be floating \[H = 2\]; found torch.(float64|int64) \["):
            call(x, x, x, sinks=sinks)
    with pytest.raises(ValueError, match="sinks is on meta, but q_BTHD on cpu"):
        call(x, x, x, sinks=torch.empty(2, device="meta"))
    for softcap in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"softcap must be a positive number, or None; found {softcap}"):
            call(x, x, x, softcap=softcap)


@pytest.mark.gpu
@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize(
    "sizes",
    [(777, 8, 2, 64, 32, 64), (900, 16, 4, 128, 0, 128), (600, 4, 2, 256, 0, 256), (1500, 16, 16, 64, 0, 64)],
    ids=str,
)
def test_gpu(sizes, window, change, randn, agree):
    made = [x if x is None else x.cuda() for x in tensors(randn, 2, sizes)]
    made[5] = made[5] if change.get("sinks") else None
    agree(attend(window, change), made, bound=8e-3, dtype=torch.bfloat16)  # 6.4e-3 with sinks, on an H200


@pytest.mark.gpu
@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("shape", [(1, 64, 8, 64, 64, 0), (7, 16, 1, 448, 0, 64), (300, 16, 4, 128, 128, 0)], ids=str)
def test_decoding_gpu(shape, change, randn):
    T, H, J, D, V, R = shape
    q, k, v = (x.cuda().bfloat16() for x in (randn(3, T, H, D), randn(3, 3000, J, D), randn(3, 3000, J, V or D)))
    ropes = {"q_rope": randn(3, T, H, R).cuda().bfloat16(), "k_rope": randn(3, 3000, R).cuda().bfloat16()} if R else {}
    options = {"scale": 0.2, **change, "sinks": 2 * randn(H).cuda() if change.get("sinks") else None}
    ends = torch.tensor([[0], [3000 - T], [1000]], device="cuda") + torch.arange(T, device="cuda")
    v = v if V else k
    wide = {name: x.double() for name, x in ropes.items()}
    expected = cached_attention(q.double(), k.double(), v.double(), ends * 0, ends, **wide, **options, impl="reference")
    found = cached_attention(q, k, v, ends * 0, ends, **ropes, **options, impl="triton")
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x.isinf(), y.isinf())
        x, y = (z.double().masked_fill(y.isinf(), 0.0) for z in (x, y))
        assert (x - y).norm() <= 6e-3 * y.norm()
