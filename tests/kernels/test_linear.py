"""Linear attention and its convolution: formulas in float64, gradients, documents, and the kernels of others."""

import itertools
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels import Documents, dispatch, linear_attention, outside, short_convolution

B, K, H, D, V = 2, 2, 4, 6, 5
LENGTHS = (1, 17, 3, 40, 9)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A second thread costs more than it saves at these sizes."""
    torch.set_num_threads(1)


def inputs(T, by_channel, delta, seed=0, dtype=torch.float64, decay=1.0, sizes=(B, K, H, D, V)):
    """Unit keys, decays of all sizes; leaves that require gradients."""
    batch, n_keys, heads, width, n_values = sizes
    generator = torch.Generator().manual_seed(seed)
    noise = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    q, k = (torch.nn.functional.normalize(noise(batch, T, n_keys, width), dim=-1) for _ in range(2))
    logs = -decay * torch.rand(batch, T, heads, width, generator=generator, dtype=torch.float64) ** 3 * 3
    made = {"q": q, "k": k, "v": noise(batch, T, heads, n_values), "decay": logs if by_channel else logs[..., 0]}
    if delta:
        made["beta"] = noise(batch, T, heads).sigmoid()
    return {name: x.to(dtype).requires_grad_() for name, x in made.items()}


def run(made, impl, **options):
    return linear_attention(
        made["q"], made["k"], made["v"], made["decay"], beta_BTH=made.get("beta"), scale=0.3, impl=impl, **options
    )


def by_hand(made, b, h, tokens):
    """o of one head over some tokens, which are one document, written as sums over the tokens before."""
    group = h // (H // K)
    state, outputs = torch.zeros(D, V, dtype=torch.float64), []
    for t in tokens:
        q, k, v = made["q"][b, t, group], made["k"][b, t, group], made["v"][b, t, h]
        decay = made["decay"][b, t, h].exp()
        state = state * (decay[:, None] if decay.dim() else decay)
        if "beta" in made:
            beta = made["beta"][b, t, h]
            state = (torch.eye(D, dtype=torch.float64) - beta * torch.outer(k, k)) @ state + beta * torch.outer(k, v)
        else:
            state = state + torch.outer(k, v)
        outputs.append(0.3 * state.T @ q)
    return torch.stack(outputs), state


FORMS = [(by_channel, delta) for by_channel in (False, True) for delta in (False, True)]
IMPLS = ["chunked", "reference"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("by_channel", "delta"), FORMS)
@pytest.mark.parametrize("T", [1, 16, 67])
def test_the_formula(impl, by_channel, delta, T):
    made = {name: x.detach() for name, x in inputs(T, by_channel, delta).items()}
    o, state = run(made, impl, keep_state=True)
    for b, h in ((0, 0), (1, 3)):
        expected, last = by_hand(made, b, h, range(T))
        torch.testing.assert_close(o[b, :, h], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(state[b, h], last, rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("by_channel", "delta"), FORMS)
def test_packed_documents_are_computed_as_if_alone(impl, by_channel, delta):
    T = sum(LENGTHS)
    made = inputs(T, by_channel, delta)
    starts_BT = torch.zeros(B, T, dtype=torch.bool)
    starts_BT[0, [0, *torch.tensor(LENGTHS).cumsum(0)[:-1].tolist()]] = True
    starts_BT[1, 45] = True
    o, _ = run(made, impl, documents=Documents.from_starts(starts_BT))
    bounds = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    for first, end in itertools.pairwise(bounds):
        part, _ = run({name: x[:1, first:end] for name, x in made.items()}, impl)
        torch.testing.assert_close(o[:1, first:end], part, rtol=0, atol=1e-12)
    for tokens in (slice(0, 45), slice(45, T)):
        part, _ = run({name: x[1:, tokens] for name, x in made.items()}, impl)
        torch.testing.assert_close(o[1:, tokens], part, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(o[0, 21:61].sum(), list(made.values()))  # the fourth document of the first row
    assert all(g[0, :21].abs().max() == g[0, 61:].abs().max() == g[1].abs().max() == 0 for g in grads)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("by_channel", "delta"), FORMS)
def test_a_state_goes_on_where_it_was(impl, by_channel, delta):
    made = {name: x.detach() for name, x in inputs(60, by_channel, delta).items()}
    expected, last = run(made, impl, keep_state=True)
    state, outputs = None, []
    for first, end in ((0, 33), (33, 34), (34, 60)):
        part = {name: x[:, first:end] for name, x in made.items()}
        o, state = run(part, impl, state_BHDV=state, keep_state=True)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("by_channel", "delta"), FORMS)
def test_gradients_of_chunks_are_those_of_the_formula(by_channel, delta):
    made = inputs(40, by_channel, delta)
    state = torch.randn(B, H, D, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = {}
    for impl in IMPLS:
        o, last = run(made, impl, state_BHDV=state, keep_state=True)
        weight = torch.linspace(-1, 1, o.numel(), dtype=torch.float64).view_as(o)
        loss = (o * weight).sum() + last.square().sum()
        found[impl] = torch.autograd.grad(loss, [*made.values(), state])
    for ours, expected in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    short = inputs(5, by_channel, delta, sizes=(1, 1, 2, 3, 2))
    names = list(short)
    torch.autograd.gradcheck(lambda *xs: run(dict(zip(names, xs, strict=True)), "chunked")[0], tuple(short.values()))


@pytest.mark.parametrize(("by_channel", "delta"), FORMS)
def test_decays_to_nothing_stay_finite(by_channel, delta):
    """exp of a sum of logs far below the smallest float; sums of thousands are rounded to some 1e-4."""
    made = inputs(70, by_channel, delta, dtype=torch.float32, decay=1e2)
    o, _ = run(made, "chunked")
    expected, _ = run(made, "reference")
    torch.testing.assert_close(o, expected, rtol=1e-3, atol=1e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(o.square().sum(), list(made.values())))


def test_the_naive_forms_of_flash_linear_attention():
    """In float32, their own precision; one head for queries and values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
        from fla.ops.gla.naive import naive_recurrent_gla
        from fla.ops.kda.naive import naive_recurrent_kda
    theirs = {
        (False, True): naive_recurrent_gated_delta_rule,
        (True, True): naive_recurrent_kda,
        (True, False): naive_recurrent_gla,
    }
    for (by_channel, delta), naive in theirs.items():
        made = inputs(50, by_channel, delta, dtype=torch.float32, sizes=(B, H, H, D, D))
        more = {"beta": made["beta"], "g": made["decay"]} if delta else {"gk": made["decay"]}
        expected = naive(made["q"], made["k"], made["v"], **more)[0] * 0.3 * D**0.5
        torch.testing.assert_close(run(made, "chunked")[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_gated_delta_rule_of_transformers():
    """That of Qwen3-Next, which norms queries and keys itself and multiplies by 1 / sqrt(D)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule
    made = inputs(70, False, True, dtype=torch.float32, sizes=(B, H, H, D, V))
    expected, state = torch_chunk_gated_delta_rule(
        made["q"], made["k"], made["v"], made["decay"], made["beta"], output_final_state=True
    )
    o, last = linear_attention(
        made["q"], made["k"], made["v"], made["decay"], beta_BTH=made["beta"], scale=D**-0.5, keep_state=True
    )
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, state, rtol=1e-4, atol=1e-5)


def test_the_convolution():
    """Against torch's, and documents and a tail against rows of their own."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).double() for shape in ((2, 30, 6), (6, 4), (6,)))
    conv = torch.nn.functional.conv1d(x.mT, weight[:, None], bias, padding=3, groups=6)[..., :30].mT
    expected = torch.nn.functional.silu(conv)
    torch.testing.assert_close(short_convolution(x, weight, bias), expected)
    rest = short_convolution(x[:, 11:], weight, bias, tail_BNC=x[:, 8:11])
    torch.testing.assert_close(rest, expected[:, 11:])
    starts_BT = torch.zeros(2, 30, dtype=torch.bool)
    starts_BT[:, [0, 2, 9, 10]] = True
    packed = short_convolution(x, weight, bias, documents=Documents.from_starts(starts_BT))
    for first, end in ((0, 2), (2, 9), (9, 10), (10, 30)):
        torch.testing.assert_close(packed[:, first:end], short_convolution(x[:, first:end], weight, bias))
    torch.testing.assert_close(short_convolution(x, weight[:, :1]), torch.nn.functional.silu(x * weight[:, 0]))


def test_what_cannot_be_is_refused():
    made = {name: x.detach() for name, x in inputs(8, True, True).items()}
    with pytest.raises(ValueError, match="value heads must be a multiple of key heads; found 3, 2"):
        run({**made, "v": made["v"][:, :, :3]}, "auto")
    with pytest.raises(
        ValueError, match=r"log_decay must be \[2, 8, 4\] or \[2, 8, 4, 6\] on cpu; found \[2, 8, 4, 3\]"
    ):
        run({**made, "decay": made["decay"][..., :3]}, "auto")
    documents = Documents.from_starts(torch.zeros(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="rows of several documents have no state"):
        run(made, "auto", documents=documents, keep_state=True)
    with pytest.raises(ValueError, match=r"'fla' .* cannot serve this call: the tensors are on cpu"):
        run(made, "fla")
    with pytest.raises(ValueError, match=r"weight_CW must be \[5, 2\] on cpu; found \[6, 2\]"):
        short_convolution(torch.zeros(1, 3, 5), torch.zeros(6, 2))
    with pytest.raises(ValueError, match="rows of several documents have no tail"):
        short_convolution(torch.zeros(2, 8, 5), torch.zeros(5, 2), documents=documents, tail_BNC=torch.zeros(2, 1, 5))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_gpu_without_the_extra_says_what_it_does_without(monkeypatch, caplog):
    """As a warning that names the command, not silently."""
    monkeypatch.setattr(outside, "_HAS_FLA", False)
    monkeypatch.setattr(dispatch.dispatcher, "told", set())
    monkeypatch.setattr(dispatch.dispatcher, "last", {})
    with FakeTensorMode(), torch.device("cuda"):
        q, v = torch.empty(1, 9, 2, 16), torch.empty(1, 9, 4, 8)
        for call, served in (
            (lambda: linear_attention(q, q, v, v[..., 0]), "chunked"),
            (lambda: short_convolution(v.flatten(2), torch.empty(32, 4)), "reference"),
        ):
            ((op, choice),) = dispatch.plan(call)
            assert choice.impl == served
            assert "flash-linear-attention is not installed; pip install 'fla-core" in choice.why
            dispatch._note(op, choice, "cuda")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "linear_attention runs as chunked (not fla: flash-linear-attention is not installed" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize(("by_channel", "delta"), FORMS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_triton_on_the_gpu(by_channel, delta, packed, dtype):
    """Forward, gradients and state of fla's kernels beside the formula in float64."""
    pytest.importorskip("fla")
    T = 200
    made = inputs(T, by_channel, delta, sizes=(2, 2, 4, 32, 64))
    starts_BT = torch.zeros(2, T, dtype=torch.bool)
    starts_BT[0, [0, 1, 70, 133]] = True
    documents = Documents.from_starts(starts_BT) if packed else None
    weight = torch.randn(2, T, 4, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = {}
    for name, device, kind in (("fla", "cuda", dtype), ("reference", "cpu", torch.float64)):
        rounded = {key: x.detach().to(torch.float32 if key in ("decay", "beta") else dtype) for key, x in made.items()}
        moved = {key: x.to(device).to(torch.float64 if kind == torch.float64 else x.dtype).requires_grad_()
                 for key, x in rounded.items()}  # fmt: skip
        on_device = None if documents is None else documents.to(device)
        o, state = run(moved, name, documents=on_device, keep_state=not packed)
        grads = torch.autograd.grad((o * weight.to(device, o.dtype)).sum(), list(moved.values()))
        found[name] = [o, *([] if state is None else [state]), *grads]
    for ours, expected in zip(found["fla"], found["reference"], strict=True):
        error = (ours.detach().double().cpu() - expected.detach()).norm() / expected.detach().norm()
        assert error < (0.02 if dtype == torch.bfloat16 else 5e-3), error


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
def test_the_convolution_on_the_gpu(packed):
    pytest.importorskip("fla")
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(*shape, generator=generator) for shape in ((2, 300, 96), (96, 4), (96,))]
    starts_BT = torch.zeros(2, 300, dtype=torch.bool)
    starts_BT[1, [0, 3, 4, 200]] = True
    found = {}
    for name, device, dtype in (("fla", "cuda", torch.float32), ("reference", "cpu", torch.float64)):
        moved = [x.to(device, dtype).requires_grad_() for x in leaves]
        documents = Documents.from_starts(starts_BT).to(device) if packed else None
        y = short_convolution(*moved, documents=documents, impl=name)
        weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(device, dtype)
        found[name] = [y, *torch.autograd.grad((y * weight).sum(), moved)]
    for ours, expected in zip(found["fla"], found["reference"], strict=True):
        torch.testing.assert_close(ours.detach().double().cpu(), expected.detach(), rtol=1e-3, atol=1e-3)
