"""Mixers with a state: each kind by loops that know nothing of the implementation, cost, cache, peers."""

import dataclasses
import math
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.blocks import build, config_class
from zoo.blocks.base import Context, Step
from zoo.kernels import Documents, use_implementation
from zoo.recipe import ModelConfig

KINDS = ("gated_linear", "lightning", "gated_deltanet", "kda", "mamba2")


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def softplus(x):
    return torch.log1p(torch.exp(x))


def normed(x, weight, eps):
    return x / torch.sqrt((x * x).mean() + eps) * weight


class Loops:
    """One document x_TC through the weights of a block, token by token and head by head, by the papers' formulas."""

    def __init__(self, block, x_TC):
        self.c, self.x = block.config, x_TC
        self.w = {name: parameter.data for name, parameter in block.named_parameters()}
        self.made = [self.w["input.weight"] @ x for x in x_TC]
        self.keys = {"gated_deltanet": "n_key_heads", "mamba2": "n_groups"}.get(self.c.kind, "n_heads")
        self.n_keys = getattr(self.c, self.keys)
        self.D = self.c.state_dim if self.c.kind == "mamba2" else self.c.head_dim
        self.V, self.H = self.c.v_head_dim, self.c.n_heads

    def mixed(self, t):
        """Queries, keys and values of token t after the convolution."""
        width = 2 * self.n_keys * self.D + self.H * self.V
        if not self.c.conv_size:
            return self.made[t][:width]
        total = self.w.get("conv_bias", torch.zeros(width, dtype=torch.float64)).clone()
        for i in range(self.c.conv_size):
            if t - i >= 0:
                total += self.w["conv_weight"][:, self.c.conv_size - 1 - i] * self.made[t - i][:width]
        return total * sigmoid(total)

    def of_head(self, t, h):
        """q, k, v, decay (of each channel of a key), beta of one head."""
        mixed, group = self.mixed(t), h // (self.H // self.n_keys)
        keys, first = self.n_keys * self.D, 2 * self.n_keys * self.D
        q = mixed[group * self.D : (group + 1) * self.D]
        k = mixed[keys + group * self.D : keys + (group + 1) * self.D]
        v = mixed[first + h * self.V : first + (h + 1) * self.V]
        rest = self.made[t][first + self.H * self.V :]
        return (q, k, v, *getattr(self, self.c.kind)(q, k, v, rest, h))

    def channels(self, name, latent, h):
        rows = slice(h * self.D, (h + 1) * self.D)
        return self.w[f"{name}.weight"][rows] @ latent + self.w["decay_bias"][rows]

    def gated_linear(self, q, k, v, rest, h):
        logits = self.channels("decay", rest[self.H * self.V :], h)
        return q / math.sqrt(self.D), k, v, sigmoid(logits) ** (1 / self.c.decay_temperature), None

    def lightning(self, q, k, v, rest, h):
        active = [x if self.c.conv_size else x * sigmoid(x) for x in (q, k, v)]
        rate = torch.tensor(2.0, dtype=torch.float64) ** (-8 * (h + 1) / self.H)
        factor = 1 + 1e-5 if self.c.decay_by_depth else 1.0
        return *active, torch.exp(-rate * factor).expand(self.D), None

    def unit(self, x):
        return x / torch.sqrt((x * x).sum() + 1e-6)

    def gated_deltanet(self, q, k, v, rest, h):
        beta, step = rest[self.H * self.V :][h], rest[self.H * self.V + self.H :][h]
        rate = torch.exp(self.w["decay_log_rate"][h])
        decay = torch.exp(-rate * softplus(step + self.w["decay_bias"][h]))
        beta = sigmoid(beta) * (2 if self.c.negative_eigenvalues else 1)
        return self.unit(q) / math.sqrt(self.D), self.unit(k), v, decay.expand(self.D), beta

    def kda(self, q, k, v, rest, h):
        steps = softplus(self.channels("decay", rest[self.H : self.H + self.c.decay_rank], h))
        decay = torch.exp(-torch.exp(self.w["decay_log_rate"][h]) * steps)
        return self.unit(q) / math.sqrt(self.D), self.unit(k), v, decay, sigmoid(rest[h])

    def mamba2(self, q, k, v, rest, h):
        step = softplus(rest[self.H * self.V :][h] + self.w["decay_bias"][h])
        decay = torch.exp(-torch.exp(self.w["decay_log_rate"][h]) * step)
        return q, k, step * v, decay.expand(self.D), None

    def states(self, h):
        """What each token reads of the state of one head."""
        state, outputs = torch.zeros(self.D, self.V, dtype=torch.float64), []
        for t in range(len(self.x)):
            _, _, raw, q, k, v, decay, beta = self.of_head(t, h)
            state = decay[:, None] * state
            if beta is not None:
                state = state - beta * torch.outer(k, k @ state)
                v = beta * v
            state = state + torch.outer(k, v)
            skip = self.w["skip"][h] * raw if self.c.kind == "mamba2" else 0
            outputs.append(q @ state + skip)
        return torch.stack(outputs)

    def output(self):
        o_THV, rows = torch.stack([self.states(h) for h in range(self.H)], 1), []
        weight = self.w["norm.weight"]
        first = 2 * self.n_keys * self.D + self.H * self.V
        for t, o in enumerate(o_THV):
            gate = self.made[t][first : first + self.H * self.V]
            if self.c.kind == "mamba2":
                gated = (o.flatten() * gate * sigmoid(gate)).view(self.n_keys, -1)
                parts = [
                    normed(x, w, self.c.norm_eps) for x, w in zip(gated, weight.view(self.n_keys, -1), strict=True)
                ]
                rows.append(self.w["output.weight"] @ torch.cat(parts))
                continue
            if self.c.kind == "lightning":
                o = normed(o.flatten(), weight, self.c.norm_eps)
                rows.append(self.w["output.weight"] @ (o * sigmoid(gate)))
                continue
            o = torch.stack([normed(head, weight, self.c.norm_eps) for head in o]).flatten()
            if self.c.kind == "kda":
                latent = self.made[t][first + self.H + self.c.decay_rank :]
                rows.append(self.w["output.weight"] @ (o * sigmoid(self.w["gate.weight"] @ latent)))
            else:
                rows.append(self.w["output.weight"] @ (o * gate * sigmoid(gate)))
        return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_is_built_alone_has_all_its_weights(kind):
    """Not the memory that happened to be there, and the decays that a model begins with."""
    names = ("conv_weight", "decay_log_rate", "decay_bias")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [build(config_class(kind)(**config_class(kind).about.example), 64) for _ in range(2)]
    for name in names:
        first, second = (getattr(block, name, None) for block in blocks)
        if first is None or kind == "gated_linear":
            continue
        assert first.requires_grad
        assert not torch.equal(first, second)
    if getattr(blocks[0], "conv_weight", None) is not None:
        assert blocks[0].conv_weight.abs().max() <= blocks[0].conv_weight.shape[1] ** -0.5


def test_a_mixer_equals_the_loops(linear_case, make, noise):
    block, x_TC = make(*linear_case), noise(19, 24)
    expected = Loops(block, x_TC).output()
    torch.testing.assert_close(block(x_TC[None], Context.for_tokens(1, 19))[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"conv_size": 0}, {"conv_size": 7, "v_head_dim": 16}])
def test_cost_is_that_of_the_module(kind, changes):
    """Parameters, forward FLOPs of the reference as torch counts them, and cache bytes in three dtypes."""
    config = config_class(kind)(**{**config_class(kind).about.example, **changes})
    block, seq_len = build(config, 96), 24
    cost = config.cost(96, seq_len)
    assert cost.total_parameters == sum(p.numel() for p in block.parameters())
    assert cost.parameters["output"] == block.output.weight.numel()
    with torch.no_grad(), use_implementation("reference"), FlopCounterMode(display=False) as counter:
        block(torch.zeros(1, seq_len, 96), Context.for_tokens(1, seq_len))
    assert cost.total_flops == counter.get_total_flops()
    for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4), (torch.float64, 8)):
        for max_len in (1, 5000):
            cache = block.new_cache(3, max_len, dtype=dtype)
            assert cache.nbytes == 3 * config.cost(96, max_len).cache_held_bytes(size)
    assert block.new_cache(1, 9, dtype=torch.bfloat16).state_BHDV.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_near_what_autograd_keeps(kind, monkeypatch):
    """The convolution and the state stand for kernels that keep their inputs; the estimate is within a quarter."""
    from zoo.blocks.linear import base

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output, *tensors):
            ctx.save_for_backward(*tensors)
            return output.clone()

        @staticmethod
        def backward(ctx, grad):
            raise AssertionError("only what the forward keeps is counted")

    def state(q, k, v, decay, *, beta_BTH, **options):
        if beta_BTH is None:
            q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
        more = () if beta_BTH is None else (beta_BTH, v.new_zeros(*v.shape[:3], 64))
        return Kept.apply(v, q, k, v, decay, *more), None

    monkeypatch.setattr(base, "linear_attention", state)
    monkeypatch.setattr(base, "short_convolution", lambda x, w, b, **options: Kept.apply(x, x))
    monkeypatch.setattr(base, "rms_norm", lambda x, w, eps: Kept.apply(x, x))
    monkeypatch.setattr("zoo.blocks.parts.rms_norm", lambda x, w, eps: Kept.apply(x, x))
    config, seq_len = config_class(kind)(n_heads=8, v_head_dim=32), 320
    block, kept = build(config, 192), {}
    weights = {tuple(p.shape) for p in block.parameters()} | {tuple(p.shape)[::-1] for p in block.parameters()}

    def pack(tensor):
        if tuple(tensor.shape) not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.zeros(1, seq_len, 192, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        y = block(x, Context.for_tokens(1, seq_len))
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert y.shape == x.shape
    assert config.resolve(192).activation_bytes(seq_len) == pytest.approx(found, rel=0.25)


def test_rows_change_places(linear_case, make, noise):
    """Beam search: a row goes on from another row's state."""
    block, x = make(*linear_case), noise(3, 20, 24)
    cache = block.new_cache(3, 20, dtype=torch.float64)
    block(x[:, :9], Step.after(torch.zeros(3, dtype=torch.int64), 9, None, True), cache)
    source_B = torch.tensor([2, 0, 0])
    cache.reorder(source_B)
    y = block(x[:, 9:], Step.after(torch.full((3,), 9), 11, None, False), cache)
    for b, source in enumerate(source_B):
        row = torch.cat((x[source, :9], x[b, 9:]))
        torch.testing.assert_close(y[b], block(row[None], Context.for_tokens(1, 20))[0, 9:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_follow_the_seed_and_decay_slowly(kind):
    blocks = []
    for seed in (1, 1, 2):
        block = build(config_class(kind)(**config_class(kind).about.example), 64)
        with torch.no_grad():
            block.initialise(torch.Generator().manual_seed(seed), 0.02, 0.01)
        blocks.append(block)
    first, again, other = (dict(block.named_parameters()) for block in blocks)
    assert all(p.isfinite().all() and torch.equal(p, again[name]) for name, p in first.items())
    assert not torch.equal(first["input.weight"], other["input.weight"])
    assert first["output.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    if kind in ("gated_linear", "lightning"):
        return
    rates, steps = first["decay_log_rate"].exp(), torch.nn.functional.softplus(first["decay_bias"])
    assert 1 <= rates.min() <= rates.max() <= 16
    assert 0.99e-3 <= steps.min() <= steps.max() <= 0.101


def test_what_a_state_cannot_be_is_refused():
    def refusal(block):
        with pytest.raises(ValueError) as caught:
            ModelConfig.model_validate(
                {"d_model": 100, "vocab_size": 9, "max_seq_len": 8, "ffn": {"d_ff": 8}, "layers": "a"}
                | {"blocks": {"a": block}}
            )
        return caught.value.errors()[0]["msg"]

    deltanet = {"kind": "gated_deltanet"}
    assert refusal(deltanet).endswith("must divide d_model (100) where head_dim is not given; found 8")
    assert refusal(deltanet | {"head_dim": 4, "n_key_heads": 3}) == "must divide n_heads (8); found 3"
    assert "less than or equal to 16" in refusal(deltanet | {"head_dim": 4, "conv_size": 17})
    assert refusal({"kind": "gated_linear", "n_heads": 20}).endswith("where head_dim is not given; found 20")
    assert refusal({"kind": "mamba2", "v_head_dim": 64}).endswith("where n_heads is not given; found 64")
    assert refusal({"kind": "mamba2", "n_heads": 4, "n_groups": 3}) == "must divide n_heads (4); found 3"


@pytest.mark.slow
def test_gated_deltanet_is_the_module_of_qwen3_next(make):
    """transformers lays the maps of a key head, and of its value heads, side by side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Qwen3NextConfig
        from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
    config = Qwen3NextConfig(
        hidden_size=24, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=6,
        linear_value_head_dim=5, linear_conv_kernel_dim=4, rms_norm_eps=1e-6, hidden_act="silu",
    )  # fmt: skip
    theirs = Qwen3NextGatedDeltaNet(config, 0)
    fields = {"kind": "gated_deltanet", "n_heads": 4, "n_key_heads": 2, "head_dim": 6, "v_head_dim": 5}
    ours = make(fields, dtype=torch.float32)
    query, key, value, gate, beta, decay = ours.input.weight.data.split([12, 12, 20, 20, 4, 4])
    by_group = zip(*(x.chunk(2) for x in (query, key, value, gate)), strict=True)
    theirs.in_proj_qkvz.weight.data = torch.cat([torch.cat(parts) for parts in by_group])
    theirs.in_proj_ba.weight.data = torch.cat([torch.cat(p) for p in zip(beta.chunk(2), decay.chunk(2), strict=True)])
    theirs.conv1d.weight.data = ours.conv_weight.data[:, None]
    theirs.A_log.data, theirs.dt_bias.data = ours.decay_log_rate.data, ours.decay_bias.data
    theirs.norm.weight.data, theirs.out_proj.weight.data = ours.norm.weight.data, ours.output.weight.data
    x = torch.randn(2, 70, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x, Context.for_tokens(2, 70)), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_mamba2_is_the_module_of_transformers(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    config = Mamba2Config(
        hidden_size=24, num_heads=4, head_dim=12, state_size=6, n_groups=2, expand=2, conv_kernel=4, chunk_size=16,
        layer_norm_epsilon=1e-6, use_bias=False, use_conv_bias=True,
    )  # fmt: skip
    theirs = Mamba2Mixer(config, 0)
    ours = make({"kind": "mamba2", "n_heads": 4, "n_groups": 1, "state_dim": 6, "v_head_dim": 12}, dtype=torch.float32)
    config.n_groups = theirs.n_groups = 1
    theirs.conv_dim, theirs.conv1d = 60, torch.nn.Conv1d(60, 60, 4, groups=60, padding=3)
    theirs.in_proj = torch.nn.Linear(24, 48 + 60 + 4, bias=False)
    query, key, value, gate, decay = ours.input.weight.data.split([6, 6, 48, 48, 4])
    theirs.in_proj.weight.data = torch.cat((gate, value, key, query, decay))
    order = [range(12, 60), range(6, 12), range(6)]
    index = torch.tensor([i for part in order for i in part])
    theirs.conv1d.weight.data = ours.conv_weight.data[index, None]
    theirs.conv1d.bias.data = ours.conv_bias.data[index]
    theirs.A_log.data, theirs.dt_bias.data, theirs.D.data = (
        p.data for p in (ours.decay_log_rate, ours.decay_bias, ours.skip)
    )
    theirs.norm.weight.data, theirs.out_proj.weight.data = ours.norm.weight.data, ours.output.weight.data
    x = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(0))
    found = ours(x, Context.for_tokens(2, 40))
    torch.testing.assert_close(found, theirs.torch_forward(x), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_kernels_on_a_gpu(kind, packed):
    """In bf16 autocast as in training: forward, gradients, and a cache in pieces and by one, beside float64."""
    pytest.importorskip("fla")
    config = config_class(kind)(n_heads=4, conv_size=4, v_head_dim=64)
    exact = build(config, 256)
    with torch.no_grad():
        exact.initialise(torch.Generator().manual_seed(0), 0.06, 0.06)
    exact = exact.double()
    single = build(config, 256)
    single.load_state_dict({name: x.float() for name, x in exact.state_dict().items()})
    single = single.cuda()
    x = torch.randn(2, 300, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    starts_BT = torch.zeros(2, 300, dtype=torch.bool)
    starts_BT[0, [0, 1, 64, 200]] = True
    documents = Documents.from_starts(starts_BT) if packed else None
    on_gpu = None if documents is None else documents.to("cuda")
    expected = exact(x, Context.for_tokens(2, 300, documents=documents))
    with torch.autocast("cuda", torch.bfloat16):
        found = single(x.float().cuda(), Context.for_tokens(2, 300, device="cuda", documents=on_gpu))
    assert (found.double().cpu() - expected).norm() < 0.02 * expected.norm()
    expected.square().sum().backward()
    found.float().square().sum().backward()
    for (name, ours), theirs in zip(single.named_parameters(), exact.parameters(), strict=True):
        error = (ours.grad.double().cpu() - theirs.grad).norm() / theirs.grad.norm()
        assert error < 0.06, f"{name}: {error:.3f}"
    if packed:
        return
    cache, parts = single.new_cache(2, 300, device="cuda", dtype=torch.bfloat16), []
    start_B = torch.zeros(2, dtype=torch.int64, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for part in x.float().cuda().split([130, 1, 1, 100, 68], 1):
            parts.append(single(part, Step.after(start_B, part.shape[1], None, not parts), cache))
            start_B = start_B + part.shape[1]
    assert (torch.cat(parts, 1).double().cpu() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("kind", ["gated_linear", "gated_deltanet", "kda", "lightning", "mamba2"])
def test_a_resolved_mixer_has_every_number(kind):
    """What is derived is resolved once, and written out it means the same."""
    written = config_class(kind)()
    known = {name for name, value in written.filled(256).items() if value is not None}
    assert any(getattr(written, name) is None for name in known)
    resolved = written.resolve(256)
    assert all(getattr(resolved, field.name) is not None for field in dataclasses.fields(resolved))
    spelt = config_class(kind)(**{name: getattr(resolved, name) for name in known})
    assert spelt.resolve(256) == resolved
    assert spelt.cost(256, 64) == written.cost(256, 64)
