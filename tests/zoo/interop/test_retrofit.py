"""What each new block takes from the old layer: exact where it can be, refused where it cannot."""

import pytest
import torch

from zoo.blocks.context import Context
from zoo.blocks.registry import config_class
from zoo.interop.errors import InteropError
from zoo.interop.latents import matched
from zoo.interop.retrofit import regrouped, retrofit

C, T = 32, 20
HEADS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
LATENT = {"n_heads": 4, "head_dim": 8, "latent_norm": False}
NSA = {
    **HEADS,
    "compression_block": 4,
    "compression_stride": 2,
    "selection_block": 4,
    "n_selected": 3,
    "gate_bias": True,
}


def resolved(kind, part=None, **fields):
    return config_class(kind).model_validate(fields).resolve(C, T, part)


def drawn(mixer, seed=0):
    """A float64 module with weights that are not small."""
    module = mixer.build().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / 3 + ("norm" in name))
    return module


def inputs(rank=C):
    """x_BTC whose second moment is not the identity."""
    generator = torch.Generator().manual_seed(7)
    mix = torch.randn(rank, C, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.2, rank)[:, None]
    return torch.randn(2, T, rank, generator=generator, dtype=torch.float64) @ mix / rank**0.5


def converted(old, new, x_BTC=None, seed=0):
    """(outputs before, outputs after, notes)."""
    x_BTC = inputs() if x_BTC is None else x_BTC
    before = drawn(old, seed)
    after = drawn(new, seed + 1)
    x_NC = x_BTC.flatten(0, 1)
    made = retrofit(old, new, before.state_dict(), dict(after.state_dict()), x_NC.T @ x_NC / len(x_NC))
    after.load_state_dict(made.state)
    context = Context.for_tokens(*x_BTC.shape[:2])
    with torch.no_grad():
        return before(x_BTC, context), after(x_BTC, context), made.notes


def test_a_mixer_with_a_state_follows_only_its_own_kind():
    fields = {"n_heads": 2, "head_dim": 8, "v_head_dim": 8, "conv_size": 0}
    old, wider = resolved("gated_deltanet", **fields), resolved("gated_deltanet", **fields, norm_eps=1e-3)
    state = dict(drawn(old).state_dict())
    made = retrofit(old, wider, state, dict(drawn(wider, 1).state_dict()), torch.eye(C, dtype=torch.float64))
    assert all(torch.equal(made.state[name], tensor) for name, tensor in state.items())
    for new in (resolved("kda", **fields), resolved("full", **HEADS)):
        with pytest.raises(InteropError, match="only an equal block can follow"):
            retrofit(old, new, state, dict(drawn(new, 1).state_dict()), torch.eye(C, dtype=torch.float64))


def error(pair):
    before, after, _ = pair
    return float((after - before).norm() / before.norm())


FULL_RANK = 2 * (8 + 8)  # keys and values of both groups
EXACT = {
    "itself": (("full", HEADS), ("full", HEADS)),
    "a window as long as the row": (("full", HEADS), ("window", {**HEADS, "window": T})),
    "a longer window": (("window", {**HEADS, "window": T}), ("full", HEADS)),
    "a key for each head": (("full", HEADS), ("full", {**HEADS, "n_kv_heads": 4})),
    "biases that are new": (("full", HEADS), ("full", {**HEADS, "qkv_bias": True, "output_bias": True})),
    "biases and a scale": (
        ("full", {**HEADS, "qkv_bias": True, "output_bias": True, "score_scale": 0.2}),
        ("full", {**HEADS, "qkv_bias": True, "output_bias": True, "score_scale": 0.9}),
    ),
    "norms of queries and keys": (
        ("full", {**HEADS, "qk_norm": True}),
        ("window", {**HEADS, "qk_norm": True, "window": T}),
    ),
    "an output gate": (("full", HEADS), ("full", {**HEADS, "output_gate": "channel"})),
    "the output gate stays": (
        ("full", {**HEADS, "output_gate": "head"}),
        ("window", {**HEADS, "output_gate": "head", "window": T}),
    ),
    "mla of full rank without rotation": (
        ("full", {**HEADS, "rope": False}),
        ("mla", {**LATENT, "rope_dim": 0, "kv_rank": FULL_RANK}),
    ),
    "mla of a larger rank, unrotated rotary part": (
        ("full", {**HEADS, "rope": False, "score_scale": 0.3}),
        ("mla", {**LATENT, "rope_dim": 4, "kv_rank": FULL_RANK + 5}),
    ),
    "gla of full rank without rotation": (
        ("full", {**HEADS, "rope": False}),
        ("gla", {**LATENT, "n_kv_heads": 2, "n_latent_heads": 2, "rope_dim": 0, "kv_rank": FULL_RANK}),
    ),
    "gla, a key for each head": (
        ("full", {**HEADS, "rope": False}),
        ("gla", {**LATENT, "n_kv_heads": 4, "n_latent_heads": 2, "rope_dim": 0, "kv_rank": FULL_RANK}),
    ),
    "mla with wider heads": (
        ("full", {**HEADS, "rope": False}),
        ("mla", {**LATENT, "head_dim": 10, "v_head_dim": 12, "rope_dim": 0, "kv_rank": FULL_RANK}),
    ),
    "one shared key that rotates": (
        ("full", {**HEADS, "n_kv_heads": 1}),
        ("mla", {**LATENT, "rope_dim": 8, "kv_rank": 16}),
    ),
    "one shared key of which half rotates": (
        ("full", {**HEADS, "n_kv_heads": 1, "rope_fraction": 0.5}),
        ("mla", {**LATENT, "rope_dim": 4, "kv_rank": 16}),
    ),
    "a latent stays": (
        ("mla", {**LATENT, "rope_dim": 4, "kv_rank": 12}),
        ("mla", {**LATENT, "rope_dim": 4, "kv_rank": 12, "window": T}),
    ),
}


@pytest.mark.parametrize(("old", "new"), EXACT.values(), ids=EXACT)
def test_what_can_be_exact_is(old, new):
    pair = converted(resolved(old[0], **old[1]), resolved(new[0], **new[1]))
    assert error(pair) < 1e-9


def test_inputs_of_low_rank_need_no_more_than_their_rank():
    """The latent holds what inputs make use of, not every direction of the maps."""
    old = resolved("full", **HEADS, rope=False)
    x_BTC = inputs(rank=6)
    fits = resolved("mla", **LATENT, rope_dim=0, kv_rank=6)
    too_small = resolved("mla", **LATENT, rope_dim=0, kv_rank=5)
    assert error(converted(old, fits, x_BTC)) < 1e-3
    assert error(converted(old, too_small, x_BTC)) > 1e-2


def test_the_error_falls_with_the_rank():
    old = resolved("full", **HEADS, rope=False)
    errors = [
        error(converted(old, resolved("mla", **LATENT, rope_dim=0, kv_rank=rank))) for rank in (4, 10, 18, 26, 32)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05


def test_the_latent_is_the_best_of_its_rank():
    """Truncated SVD of keys and values on top of each other, in the norm of the inputs: Eckart-Young."""
    old, new = resolved("full", **HEADS, rope=False), resolved("mla", **LATENT, rope_dim=0, kv_rank=10)
    before, after, x_NC = drawn(old), new.build().double(), inputs().flatten(0, 1)
    made = retrofit(old, new, before.state_dict(), dict(after.state_dict()), x_NC.T @ x_NC / len(x_NC)).state
    stacked_XC = before.projection.input.weight[4 * 8 :]
    outputs_NX = x_NC @ stacked_XC.T
    latent_NR = x_NC @ made["projection.input.weight"][4 * 8 :].T
    ups = [made[f"projection.{name}.weight"].unflatten(0, (4, 8))[::2].flatten(0, 1) for name in ("key_up", "value_up")]
    found = float((latent_NR @ torch.cat(ups).T - outputs_NX).detach().square().sum())
    best = float(torch.linalg.svdvals(outputs_NX.detach())[10:].square().sum())
    assert found == pytest.approx(best, rel=1e-6)


def test_the_rotary_key_takes_the_frequencies_that_it_has():
    old = resolved("full", **HEADS, rope_theta=100.0).attention.projection
    uniform = resolved("mla", **LATENT, rope_dim=4, rope_theta=100.0).attention.projection
    fastest = resolved("mla", **LATENT, rope_dim=4, rope_theta=100.0**0.5).attention.projection
    assert matched(old, uniform) == {0: 0, 1: 2}  # theta^(-2j/4) is theta^(-4j/8)
    assert matched(old, fastest) == {0: 0, 1: 1}
    elsewhere = resolved("mla", **LATENT, rope_dim=4, rope_theta=1e9).attention.projection
    assert matched(old, elsewhere) == {0: 0}
    assert matched(old, resolved("mla", **LATENT, rope=False).attention.projection) == {}


def test_rotation_is_better_kept_than_left_out():
    """Groups whose keys are alike: one shared rotary key serves them all."""
    old = resolved("full", **HEADS)
    before = drawn(old)
    with torch.no_grad():
        weight = before.projection.input.weight
        weight[40:48] = weight[32:40] * 1.3  # the second group's key
    x_BTC = inputs()
    x_NC, context = x_BTC.flatten(0, 1), Context.for_tokens(2, T)
    errors = {}
    for rope_dim in (0, 4, 8):
        new = resolved("mla", **LATENT, rope_dim=rope_dim, kv_rank=FULL_RANK)
        after = new.build().double()
        after.load_state_dict(retrofit(old, new, before.state_dict(), dict(after.state_dict()), x_NC.T @ x_NC).state)
        with torch.no_grad():
            y, found = before(x_BTC, context), after(x_BTC, context)
        errors[rope_dim] = float((found - y).norm() / y.norm())
    assert errors[8] < 1e-9
    assert errors[8] < errors[4] < errors[0]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_latent_with_its_norm_is_near_and_says_so(scale):
    old = resolved("full", **HEADS, rope=False)
    new = resolved("mla", **LATENT | {"latent_norm": True}, rope_dim=0, kv_rank=FULL_RANK, latent_scale=scale)
    pair = converted(old, new)
    assert error(pair) < 0.8
    assert any("latent_norm" in note for note in pair[2])


@pytest.mark.parametrize("separate_kv", [False, True])
def test_new_gates_open_the_window_first(separate_kv):
    """Nearly the window alone; the other branches add 0.018 of their output each."""
    old = resolved("full", **HEADS)
    pair = converted(old, resolved("nsa", **NSA, window=8, separate_kv=separate_kv))
    alone = converted(old, resolved("window", **HEADS, window=8))
    assert float((pair[1] - alone[1]).norm() / alone[1].norm()) < 0.05
    assert any("new gates open window, and close compression, selection" in note for note in pair[2])


def test_without_biases_gates_open_all_branches_alike():
    old = resolved("full", **HEADS)
    fields = {**NSA, "gate_bias": False, "compression_block": 1, "compression_stride": 1, "n_selected": 8, "window": T}
    pair = converted(old, resolved("nsa", **fields))  # every branch sees every key
    assert error(pair) < 1e-9
    assert any("gate_bias: false: new gates open compression, selection, window alike" in note for note in pair[2])


def test_gates_of_patterns_that_stay_are_kept():
    old = resolved("nsa", **NSA, window=8)
    new = resolved("nsa", **NSA, window=5)
    before, after = drawn(old), drawn(new, 1)
    made = retrofit(old, new, before.state_dict(), dict(after.state_dict()), torch.eye(C, dtype=torch.float64)).state
    assert torch.equal(made["gate.weight"], before.gate.weight)
    assert torch.equal(made["gate.bias"], before.gate.bias)


def test_learned_pooling_is_new_where_there_was_none_and_stays_where_there_was():
    mlp = resolved("nsa", **NSA, window=8, pooling="mlp")
    assert any("drawn anew: patterns.compression" in note for note in converted(resolved("full", **HEADS), mlp)[2])
    assert any("left out: patterns.compression" in note for note in converted(mlp, resolved("full", **HEADS))[2])
    assert error(converted(mlp, resolved("nsa", **NSA, window=8, pooling="mlp", n_init=1))) < 1e-9


def test_groups_become_copies_or_means():
    x = torch.arange(8.0).view(4, 2)
    assert regrouped(x, 8).tolist() == [row for row in x.tolist() for _ in range(2)]
    assert regrouped(x, 2).tolist() == [[1.0, 2.0], [5.0, 6.0]]


def test_notes_say_what_is_not_as_before():
    new = resolved("full", **HEADS | {"n_kv_heads": 1}, rope=False)
    notes = converted(resolved("full", **HEADS), new)[2]
    assert "rope was true, and is false" in notes
    assert "2 key/value heads became the means of 1 groups" in notes


REFUSED = {
    "heads": (("full", HEADS), ("full", {**HEADS, "n_heads": 2}), "n_heads: must be 4, as before; found 2"),
    "heads of a latent": (("full", HEADS), ("mla", {**LATENT, "n_heads": 2}), "n_heads: must be 4"),
    "width": (("full", HEADS), ("full", {**HEADS, "head_dim": 4}), "head_dim: must be 8"),
    "groups": (
        ("full", {**HEADS, "n_heads": 6, "n_kv_heads": 3}),
        ("full", {**HEADS, "n_heads": 6, "n_kv_heads": 2}),
        "n_kv_heads: must divide 3 or be a multiple; found 2",
    ),
    "fewer groups of a latent": (
        ("full", HEADS),
        ("gla", {**LATENT, "n_kv_heads": 1, "n_latent_heads": 1}),
        "n_kv_heads: must be a multiple of 2",
    ),
    "norms to nothing": (("full", {**HEADS, "qk_norm": True}), ("full", HEADS), "qk_norm: must be true"),
    "norms to a latent": (("full", {**HEADS, "qk_norm": True}), ("mla", LATENT), "qk_norm: norms of queries and keys"),
    "biases to nothing": (("full", {**HEADS, "qkv_bias": True}), ("full", HEADS), "qkv_bias: must be true"),
    "biases to a latent": (("full", {**HEADS, "qkv_bias": True}), ("mla", LATENT), "qkv_bias: mla has no biases"),
    "an output bias": (("full", {**HEADS, "output_bias": True}), ("mla", LATENT), "output_bias: must be true"),
    "an output gate": (
        ("full", {**HEADS, "output_gate": "head"}),
        ("full", HEADS),
        "output_gate: must be 'head'",
    ),
    "a query latent": (("full", HEADS), ("mla", {**LATENT, "q_rank": 8}), "q_rank: a query latent has a norm"),
    "a latent to groups": (("mla", LATENT), ("full", HEADS), "projection: a latent projection must stay as it is"),
    "another latent": (("mla", LATENT), ("mla", {**LATENT, "kv_rank": 12}), "stay as it is; kv_rank differs"),
    "a scale with norms": (
        ("full", {**HEADS, "qk_norm": True}),
        ("full", {**HEADS, "qk_norm": True, "score_scale": 0.5}),
        "score_scale: must be 0.35",
    ),
}


@pytest.mark.parametrize(("old", "new", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_take_over_the_weights_is_refused(old, new, why):
    with pytest.raises(InteropError, match=why):
        converted(resolved(old[0], **old[1]), resolved(new[0], **new[1]))
