"""Layers that share keys and values: which do, the sums written out, cost, cache, checkpointing, maps, conversion."""

import math

import pytest
import torch

from zoo.blocks.base import Context
from zoo.counting.model_cost import model_cost
from zoo.interop.architecture import write_config
from zoo.interop.errors import InteropError
from zoo.interop.retrofit import retrofit
from zoo.model import build_model
from zoo.recipe import ModelConfig
from zoo.report.maps import random_visibility, visibility
from zoo.report.reach import reach

HEADS = {"n_heads": 4, "head_dim": 6}
GQA = {"projection": {"kind": "gqa", **HEADS, "n_kv_heads": 2}}
BLOCKS = {
    "full": {"kind": "full", **HEADS, "n_kv_heads": 2, "qk_norm": True, "qkv_bias": True},
    "normed after": {"kind": "full", **HEADS, "qk_norm": True, "qk_norm_place": "after", "output_gate": "head"},
    "window": {"kind": "window", **HEADS, "window": 5},
    "mla": {"kind": "mla", **HEADS, "kv_rank": 8, "rope_dim": 4},
    "mla, query latent": {"kind": "mla", **HEADS, "kv_rank": 8, "rope_dim": 4, "q_rank": 7, "window": 5},
    "gla": {"kind": "gla", **HEADS, "kv_rank": 8, "rope_dim": 0, "n_latent_heads": 2},
    "two": {"kind": "attention", **GQA, "patterns": [{"kind": "full"}, {"kind": "window", "window": 3}]},
    "two sets": {
        "kind": "attention", **GQA, "patterns": [{"kind": "full"}, {"kind": "window", "window": 3}], "separate_kv": True
    },
    "dilated": {"kind": "attention", **GQA, "patterns": [{"kind": "dilated", "n_keys": 3, "dilation": 2}]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A second thread costs more than it saves at these sizes."""
    torch.set_num_threads(1)


def section(block: dict, share: int = 2, layers: str = "a*3", **more) -> ModelConfig:
    sizes = {"d_model": 24, "vocab_size": 40, "max_seq_len": 32, "ffn": {"d_ff": 16}}
    blocks = {"a": {**block, "share_kv": share}, **more.pop("blocks", {})}
    return ModelConfig.model_validate({**sizes, "blocks": blocks, "layers": layers, **more})


def drawn(config: ModelConfig, seed: int = 1):
    model = build_model(config, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(
                noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3 * noise + ("norm" in name)
            )
    return model


def tokens(batch: int = 2, seq_len: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(40, (batch, seq_len), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=BLOCKS)
def block(request) -> dict:
    return BLOCKS[request.param]


def test_groups_follow_the_occurrences_of_a_block():
    """By block, part of `with` and all; whatever stands between; the last group may be short."""
    full, other = BLOCKS["full"], BLOCKS["window"]
    mixed = section(full, 3, "(b a)*4 a", blocks={"b": {**other, "share_kv": 2}})
    assert [layer.kv_layer for layer in mixed.expanded()] == [0, 1, 0, 1, 4, 1, 4, 7, 7]
    changed = section(full, 2, ["a", {"use": "a", "with": {"n_kv_heads": 4}}, "a", "a"])
    assert [layer.kv_layer for layer in changed.expanded()] == [0, 1, 0, 3]
    assert [layer.kv_layer for layer in section(full, 1).expanded()] == [None] * 3
    assert [layer.follows for layer in section(full, 2).expanded()] == [False, True, False]


def test_a_following_layer_by_hand():
    """Queries of layer 1, keys and values of layer 0, with numbers from nothing but the weights."""
    model = drawn(section({"kind": "full", "n_heads": 2, "head_dim": 4, "rope": False}, 2, "a*2"))
    leader, follower = (layer.attention for layer in model.layers)
    x, y = (torch.randn(7, 24, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (3, 4))
    context = Context.for_tokens(1, 7)
    leader(x[None], context)
    found = follower(y[None], context)[0]
    _, key, value = leader.projection.input.weight.detach().split([8, 8, 8])
    query = follower.projection.input.weight.detach()
    for t in range(7):
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            weights = [math.exp(float((query[h] @ y[t]) @ (key[h] @ x[s])) / 2) for s in range(t + 1)]
            heads.append(sum(w * (value[h] @ x[s]) for s, w in enumerate(weights)) / sum(weights))
        torch.testing.assert_close(found[t], follower.output.weight @ torch.cat(heads))


def test_cost_is_that_of_the_model(block):
    """Parameters, and the cache, which a group has once."""
    for seq_len in (4, 32):
        config, alone = section(block, 2), section(block, 1)
        model = build_model(config, device="meta")
        shared, single = model_cost(config, seq_len), model_cost(alone, seq_len)
        assert shared.parameters["total"] == sum(p.numel() for p in model.parameters())
        assert 3 * shared.cache_held_bytes == 2 * single.cache_held_bytes
        assert 3 * shared.cache_nominal_bytes == 2 * single.cache_nominal_bytes
        assert model.new_cache(2, seq_len, dtype=torch.bfloat16).nbytes == 2 * shared.cache_held_bytes
        assert shared.flops_by_part["attention"] < single.flops_by_part["attention"]
        assert config.expanded()[1].mixer.activation_bytes(seq_len) < alone.expanded()[1].mixer.activation_bytes(
            seq_len
        )
    assert {name for name, _ in model.layers[1].attention.projection.named_parameters()} <= {
        "input.weight", "input.bias", "query.weight", "query_norm.weight", "sinks"
    }  # fmt: skip


def test_decoding_is_the_full_forward(block):
    model, tokens_BT = drawn(section(block, 2, "a*3")).eval(), tokens()
    with torch.no_grad():
        expected, cache = model(tokens_BT), model.new_cache(2, 20)
        found = [model(part, cache=cache) for part in tokens_BT.split([7, 1, 9, 1, 1, 1], 1)]
        torch.testing.assert_close(torch.cat(found, 1), expected)
        cache.reset()
        n_new_B = torch.tensor([13, 4])
        logits_BV = model.next_logits(tokens_BT[:, :13], cache, n_new_B)
        torch.testing.assert_close(logits_BV, expected[torch.arange(2), n_new_B - 1])
        cache.reorder(torch.tensor([1, 1]))
        logits_BV = model.next_logits(tokens_BT[1:, 4:5].expand(2, -1), cache)
        torch.testing.assert_close(logits_BV, expected[1, 4].expand(2, -1))


def test_documents_are_isolated(block):
    model, tokens_BT = drawn(section(block, 3, document_mask=True)).eval(), tokens(1)
    starts_BT = torch.zeros(1, 20, dtype=torch.bool)
    starts_BT[0, [0, 6, 7]] = True
    with torch.no_grad():
        packed = model(tokens_BT, starts_BT)
        alone = [model(part) for part in tokens_BT.split([6, 1, 13], 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1))


@pytest.mark.parametrize("name", ["full", "mla", "two"])
def test_gradients_reach_the_keys_from_every_layer(name):
    """Against differences along one direction, and the same under activation checkpointing, group by group."""
    model, tokens_BT = drawn(section(BLOCKS[name], 2, "a*5")), tokens()
    labels_BT = tokens(seed=1)
    loss = model.loss(tokens_BT, labels_BT)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(grad.abs().max() > 0 for grad in grads.values())
    model.zero_grad()
    model.activation_checkpointing = True
    model.loss(tokens_BT, labels_BT).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], msg=name)
    model.activation_checkpointing = False
    generator, h = torch.Generator().manual_seed(9), 1e-5
    with torch.no_grad():
        directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()]
        sides = []
        for sign in (1, -2):
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter += sign * h * direction
            sides.append(float(model.loss(tokens_BT, labels_BT)))
    slope = sum(float((g * d).sum()) for g, d in zip(grads.values(), directions, strict=True))
    assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(slope, rel=1e-5)


def test_what_cannot_share_is_refused():
    nsa = {"kind": "attention", **GQA, "patterns": [{"kind": "window"}, {"kind": "compression"}]}
    with pytest.raises(ValueError, match="must be 1 with compression, which makes or keeps keys of its own; found 2"):
        section(nsa, 2)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        section(BLOCKS["full"], 0)
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        section({"kind": "ansa", **HEADS}, 2)
    follower = build_model(section(BLOCKS["full"], 2)).layers[1].attention
    with pytest.raises(ValueError, match="reads the keys and values of layer 0, which has not run before it"):
        follower(torch.zeros(1, 3, 24), Context.for_tokens(1, 3))


def test_maps_of_layers_that_follow(block):
    """The keys that a trained layer reads, and those of a random one."""
    config = section(block, 2)
    model = build_model(config)
    caught = {}
    handle = model.layers[1].attention.register_forward_pre_hook(lambda _, arguments: caught.update(a=arguments))
    with torch.no_grad():
        model.hidden(tokens(1))
    handle.remove()
    seen = visibility(model.layers[1].attention.double(), caught["a"][0].double(), caught["a"][1])
    expected = random_visibility(config.blocks["a"], None, 24, 20)
    assert seen.keys() == expected.keys()
    assert all(torch.equal(seen[kind], expected[kind]) for kind in seen)
    assert random_visibility(config.expanded()[1].mixer, None, 24, 20).keys() == seen.keys()


def test_keys_are_as_old_as_the_layer_that_made_them():
    """A window of 4: each layer of its own keys adds 3 tokens, a follower reads what its leader read."""
    window = {"kind": "window", **HEADS, "window": 4}
    assert reach(section(window, 1), 30).tokens == 10
    assert reach(section(window, 2), 30).tokens == 7
    assert reach(section(window, 3), 30).tokens == 4


def test_weights_of_a_follower_are_not_converted_and_no_family_has_them():
    leader, follower = (layer.mixer for layer in section(BLOCKS["window"], 2, "a*2").expanded())
    alone = section(BLOCKS["full"], 1, "a").expanded()[0].mixer
    for old, new, which in ((follower, alone, "old"), (alone, follower, "new")):
        with pytest.raises(InteropError, match=f"share_kv: the {which} layer has no keys of its own"):
            retrofit(old, new, {}, {}, torch.eye(24))
    state = dict(follower.build().state_dict())
    assert retrofit(follower, follower, state, state, torch.eye(24)).state.keys() == state.keys()
    assert leader != follower
    with pytest.raises(InteropError, match="follows is true; in llama it is false"):
        write_config("llama", section({"kind": "full", **HEADS}, 2, tie_embeddings=False, norm_eps=1e-6))
