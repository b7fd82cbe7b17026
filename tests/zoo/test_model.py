"""The decoder around the blocks: parameters, initialisation, loss, checkpointing, packed documents."""

import math
import threading
from pathlib import Path

import pytest
import torch

import zoo
from zoo.blocks.drawing import drawn
from zoo.blocks.parts import linear
from zoo.counting.model_cost import model_cost
from zoo.errors import ZooError
from zoo.model import build_model

KINDS = {
    "full": {"kind": "full", "n_heads": 4, "n_kv_heads": 2},
    "window": {"kind": "window", "n_heads": 4, "n_kv_heads": 2, "window": 5},
    "mla": {"kind": "mla", "n_heads": 4, "kv_rank": 16, "rope_dim": 4},
    "gla": {"kind": "gla", "n_heads": 4, "n_kv_heads": 4, "n_latent_heads": 2, "kv_rank": 16, "rope_dim": 4},
    "nsa": {"kind": "nsa", "n_heads": 4, "n_kv_heads": 2, "window": 5, "n_selected": 4, "selection_block": 4,
            "compression_block": 4, "compression_stride": 2},
    "ansa": {"kind": "ansa", "n_heads": 4, "n_kv_heads": 2, "kv_rank": 16, "rope_dim": 4, "window": 5,
             "n_selected": 4, "selection_block": 4, "compression_block": 4, "compression_stride": 4},
}  # fmt: skip


def small(blocks: dict, layers: str, **model) -> "zoo.recipe.ModelConfig":
    """A model section of width 32 with the blocks and the schedule given."""
    from zoo.recipe import ModelConfig

    settings = {"d_model": 32, "vocab_size": 50, "max_seq_len": 64, "ffn": {"kind": "swiglu", "d_ff": 48}}
    return ModelConfig.model_validate({**settings, "blocks": blocks, "layers": layers, **model})


def tokens(rows: int, seq_len: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(50, (rows, seq_len), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", [{}, {"tie_embeddings": False, "ffn": {"kind": "gelu", "d_ff": 40}}])
def test_parameters_known_from_the_config_alone(kind, variant):
    config = small({"a": KINDS[kind]}, "a*4", **variant)
    built = sum(parameter.numel() for parameter in build_model(config, device="meta").parameters())
    assert model_cost(config, seq_len=64).parameters["total"] == built


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_token_changes_no_earlier_logit(kind):
    model = build_model(small({"a": KINDS[kind]}, "a*2"), seed=3).double()
    before, after = tokens(2, 23), tokens(2, 23)
    after[:, 15] = (after[:, 15] + 1) % 50
    changed = (model(before) - model(after)).abs().amax(dim=(0, 2))
    assert changed[:15].max() == 0
    assert changed[15:].min() > 0


def test_documents_do_not_see_each_other_when_the_recipe_says_so():
    starts = torch.zeros(1, 24, dtype=torch.bool)
    starts[0, [0, 9, 17]] = True
    before, after = tokens(1, 24), tokens(1, 24)
    after[0, 10] = (after[0, 10] + 1) % 50
    for document_mask in (True, False):
        model = build_model(small(KINDS, "full window mla gla nsa ansa*2", document_mask=document_mask)).double()
        changed = (model(before, starts) - model(after, starts)).abs().amax(dim=(0, 2))
        assert changed[:10].max() == 0
        assert (changed[17:].max().item() == 0) is document_mask, "only document_mask isolates the next document"


class Room(torch.nn.Module):
    """A layer that notes how many documents a row has room for."""

    def forward(self, x_BTC, delta_BTC, context):
        self.found = context.documents.max_documents
        return x_BTC, delta_BTC


@pytest.mark.parametrize("known", [None, 3])
def test_packed_rows_where_documents_cannot_be_counted_get_the_room_that_is_known(known):
    model = build_model(small({"a": KINDS["ansa"]}, "a", document_mask=True), device="meta")
    model.layers, model.max_documents = torch.nn.ModuleList([Room()]), known
    model(torch.zeros(2, 12, dtype=torch.int64, device="meta"), torch.zeros(2, 12, dtype=torch.bool, device="meta"))
    assert model.layers[0].found == (known or 12)


def test_initialisation_scales_what_writes_to_the_residual_stream():
    model = build_model(small({"a": KINDS["full"]}, "a*8", d_model=128, init_std=0.03), seed=1)
    layer = model.layers[0]
    assert layer.feed_forward.up.weight.std().item() == pytest.approx(0.03, rel=0.05)
    for module in (layer.attention.output, layer.feed_forward.output):
        assert module.weight.std().item() == pytest.approx(0.03 / math.sqrt(16), rel=0.05)
    assert all((norm.weight == 1).all() for norm in (model.norm, layer.attention_norm))


def test_the_seed_alone_decides_the_weights():
    config = small(KINDS, "full nsa ansa*2")
    first, again, other = (build_model(config, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


class Fills(torch.overrides.TorchFunctionMode):
    """Memory that torch leaves as it is holds NaN."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        filled = func in (torch.empty, torch.empty_like) and found.is_floating_point()
        return found.fill_(math.nan) if filled else found


TINY = sorted((Path(__file__).parents[2] / "recipes" / "tiny").glob("[!_]*.yaml"))
MOE = {"kind": "moe", "d_ff": 16, "n_experts": 4, "n_active": 2, "n_shared": 1, "shared_gate": True}


@pytest.mark.parametrize(
    "recipe",
    [
        *(pytest.param(path, id=path.stem) for path in TINY),
        pytest.param(small(KINDS, "full", ffn=MOE, tie_embeddings=False), id="moe"),
        pytest.param(small(KINDS, "full", multi_token={"depth": 1}), id="multi_token"),
    ],
)
def test_every_weight_is_drawn(recipe):
    with Fills():
        model = build_model(recipe)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_weights_of_the_zoos_own_parts_are_drawn_once():
    config, before = small(KINDS, "full window mla gla nsa ansa.local ansa.global"), torch.get_rng_state()
    build_model(config)
    assert torch.equal(torch.get_rng_state(), before), "PyTorch has drawn weights"


def test_only_the_zoos_parts_in_this_thread_stay_undrawn():
    found = []

    def make():
        with Fills():  # which is of one thread, too
            found.append(linear(4, 4).weight)

    with drawn(False):
        make()
        found.append(torch.nn.Linear(4, 4).weight)
        with drawn(True):
            make()
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    make()
    assert [bool(weight.isnan().any()) for weight in found] == [True, False, False, False, False]


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_a_model_is_on_the_device_that_is_asked_for(default):
    config = small(KINDS, "full")
    with torch.device(default):
        model = build_model(config)
    expected = build_model(config).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_loss_is_cross_entropy_over_the_targets_only():
    model = build_model(small({"a": KINDS["full"]}, "a"))
    rows = tokens(2, 12)
    labels = rows.roll(-1, dims=1)
    labels[0, 5:] = -100
    expected = torch.nn.functional.cross_entropy(model(rows).flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(model.loss(rows, labels), expected.sum() / 17)
    torch.testing.assert_close(model.loss(rows, labels, reduction="sum"), expected.sum())
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum'; found 'max'"):
        model.loss(rows, labels, reduction="max")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_padding_alone_has_no_loss_and_no_gradient(kind):
    model = build_model(small({"a": KINDS[kind]}, "a*2"))
    rows = torch.zeros(2, 7, dtype=torch.int64)
    loss = model.loss(rows, torch.full_like(rows, -100))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters() if p.grad is not None)


def test_activation_checkpointing_changes_memory_not_gradients():
    model = build_model(small(KINDS, "full window mla gla nsa ansa*2")).double()
    rows = tokens(2, 20)
    gradients = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        model.loss(rows, rows.roll(-1, dims=1)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_an_absent_device_is_one_clear_error():
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ZooError, match="cannot build a model on device 'cuda'"):
        build_model(small({"a": KINDS["full"]}, "a"), device="cuda")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kind", "part", "layer"), [("full", None, 1), ("ansa", "local", 1), ("ansa", "global", 2)])
def test_a_block_that_counts_its_parameters_wrongly_is_named(device, kind, part, layer, monkeypatch):
    """Here the module of one part has a vector that its config does not count."""
    config = small({"mine": KINDS[kind], "other": KINDS["mla"]}, "other mine*2")
    cls, build = type(config.blocks["mine"]), type(config.blocks["mine"]).build

    def with_a_vector(self, d_model, part_built=None):
        block = build(self, d_model, part_built)
        if part_built == part:
            block.forgotten = torch.nn.Parameter(torch.zeros(7))
        return block

    counted = config.blocks["mine"].cost(32, 64, part).total_parameters
    monkeypatch.setattr(cls, "build", with_a_vector)
    has = rf"model\.blocks\.mine: layer {layer} \(Attention\) has {counted + 7:,} parameters"
    with pytest.raises(ZooError, match=rf"{has}; the cost of {cls.__name__} counts {counted:,}; correct the count"):
        build_model(config, device=device)
