"""A backward kernel that does not fit the GPU: that pass is computed by PyTorch, and later calls do without it."""

import logging

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from zoo.kernels import (
    Documents,
    compression_attention,
    dispatch,
    selection_attention,
    use_implementation,
    window_attention,
)
from zoo.kernels.full import full_attention

SEQ_LEN = 48
CALLS = {
    "full": lambda q, k, v, **rest: full_attention(q, k, v, **rest),
    "window": lambda q, k, v, **rest: window_attention(q, k, v, window=9, **rest),
    "compression": lambda q, k, v, k_rope, **rest: compression_attention(
        q, k[:, :12], v[:, :12], k_rope=k_rope[:, :12], block=8, stride=4, **rest
    )[0],
    "selection": lambda q, k, v, **rest: selection_attention(q, k, v, CHOSEN, selection_block=16, **rest),
}
CHOSEN = torch.tensor([0, -1], dtype=torch.int32).expand(1, SEQ_LEN, 1, 2)


@pytest.fixture
def too_little(monkeypatch):
    """Triton for tensors of the CPU, on a GPU that has no room for the kernels of dk and dv."""
    errors = pytest.importorskip("triton.runtime.errors")
    from zoo.kernels.selection import op_by_key
    from zoo.kernels.shared_intervals import op

    def fails(*arguments):
        raise errors.OutOfResources(200_000, 101_376, "shared memory")

    monkeypatch.setattr(op, "_launch_dkv", fails)
    monkeypatch.setattr(op_by_key, "launch", fails)
    monkeypatch.setattr(dispatch, "_too_slow", lambda *tensors: None)
    monkeypatch.setattr(dispatch.dispatcher, "failed", {})
    monkeypatch.setattr(dispatch.dispatcher, "pending", {})
    monkeypatch.setattr(dispatch.dispatcher, "told", set())
    monkeypatch.delenv("ZOO_KERNELS", raising=False)


def inputs(randn, documents: bool) -> tuple[list[torch.Tensor], dict]:
    leaves = [randn(1, SEQ_LEN, *shape).float().requires_grad_() for shape in ((2, 16), (1, 16), (1, 16), (2, 8), (8,))]
    cuts = torch.tensor([0, 20, SEQ_LEN])
    return leaves, {"documents": Documents.from_cu_seqlens(cuts, 1, SEQ_LEN) if documents else None}


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_those_of_the_reference(name, documents, randn, too_little, monkeypatch, caplog):
    (q, k, v, q_rope, k_rope), options = inputs(randn, documents)
    leaves = (q, k, v, q_rope, k_rope)

    def gradients(**more):
        o = CALLS[name](q, k, v, q_rope=q_rope, k_rope=k_rope, **options, **more)
        return torch.autograd.grad(o, leaves, torch.linspace(-1, 1, o.numel()).view_as(o))

    op = f"{name}_attention"
    registered = dispatch.dispatcher.registered
    monkeypatch.setitem(registered, op, [i for i in registered[op] if i.name != "sdpa"])
    expected = gradients(impl="reference")
    with caplog.at_level(logging.INFO, "zoo.kernels"):
        torch.testing.assert_close(gradients(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients(), expected)
        gradients()
    first, warning, last = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"{op} runs as triton")
    assert warning.startswith(f"{op} no longer runs as triton: this GPU has too little for it (out of resource")
    assert caplog.records[1].levelno == logging.WARNING
    assert last.startswith(f"{op} runs as reference (not triton: this GPU has too little for it (out of resource")


@pytest.mark.interp
def test_selection_by_key(randn, too_little, monkeypatch, caplog):
    """Its forward kernels fit; it keeps more for backward than the other form."""
    from triton.runtime.errors import OutOfResources

    from zoo.kernels.launching import launch
    from zoo.kernels.selection import op, op_by_key

    def fails(*arguments):
        raise OutOfResources(200_000, 101_376, "shared memory")

    monkeypatch.setattr(op, "by_key", lambda *arguments: True)
    monkeypatch.setattr(op_by_key, "launch", launch)
    monkeypatch.setattr(op_by_key, "partial_sums", fails)
    (q, k, v, *_), _ = inputs(randn, False)
    registered = dispatch.dispatcher.registered["selection_attention"]
    monkeypatch.setitem(
        dispatch.dispatcher.registered, "selection_attention", [i for i in registered if i.name != "sdpa"]
    )

    def gradients(**more):
        o = CALLS["selection"](q, k, v, **more)
        return torch.autograd.grad(o, (q, k, v), torch.linspace(-1, 1, o.numel()).view_as(o))

    expected = gradients(impl="reference")
    torch.testing.assert_close(gradients(), expected, atol=1e-5, rtol=1e-5)
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1


@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize("reentrant", [pytest.param(False, marks=pytest.mark.long), True])
def test_checkpointed_layers_fall_back_after_the_pass(reentrant, randn, too_little, caplog):
    """What is computed again in the pass that failed is computed as before; and the warning comes though it is known
    that the reference runs.
    """
    (q, k, v, q_rope, k_rope), _ = inputs(randn, False)
    rotary = {"q_rope": q_rope, "k_rope": k_rope}
    window_attention(q.double(), k.double(), v.double(), window=9)

    def two_layers(run):
        first = run(lambda x: window_attention(x, k, v, window=9, **rotary))
        return run(lambda x: window_attention(x, k, v, window=5, **rotary), first)

    def plain(layer, x=q):
        return layer(x)

    def checkpointed(layer, x=q):
        return checkpoint(layer, x, use_reentrant=reentrant)

    def gradients(run):
        for x in (q, k, v):
            x.grad = None
        two_layers(run).square().sum().backward()
        return [x.grad for x in (q, k, v)]

    with use_implementation("reference"):
        expected = gradients(plain)
    torch.testing.assert_close(gradients(checkpointed), expected, atol=1e-4, rtol=1e-4)
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    assert dispatch.choose("window_attention", "auto", q, k, v, window=9).impl == "reference"
    torch.testing.assert_close(gradients(checkpointed), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.interp
def test_autocast_does_not_reach_the_reference(randn, too_little):
    (q, k, v, q_rope, k_rope), _ = inputs(randn, False)
    call = lambda **more: window_attention(q, k, v, window=9, q_rope=q_rope, k_rope=k_rope, **more)  # noqa: E731
    (expected,) = torch.autograd.grad(call(impl="reference").square().sum(), q)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(call().square().sum(), q)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.interp
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n == "selection")) for n in CALLS])
def test_a_named_implementation_raises(name, randn, too_little):
    (q, k, v, q_rope, k_rope), _ = inputs(randn, False)
    from triton.runtime.errors import OutOfResources

    o = CALLS[name](q, k, v, q_rope=q_rope, k_rope=k_rope, impl="triton")
    with pytest.raises(OutOfResources, match="shared memory"):
        o.sum().backward()
    assert dispatch.dispatcher.failed == {}
