"""Modules that predict further tokens: their formulas, their part of the loss, counts, and where they do not run."""

import pytest
import torch
from pydantic import ValidationError
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.blocks.context import Context
from zoo.counting.model_cost import model_cost
from zoo.counting.run_cost import GPUS, step_size
from zoo.errors import RecipeError
from zoo.export.transformers_model import ZooConfig, ZooForCausalLM
from zoo.interop.converting import convert
from zoo.kernels import use_implementation
from zoo.kernels.documents import Documents
from zoo.model import Decoder, build_model
from zoo.model.multi_token import further_labels
from zoo.recipe import ModelConfig, load_recipe
from zoo.report.settings import settings
from zoo.report.show import as_text
from zoo.training.initial import Initial

ANSA = {"kind": "ansa", "n_heads": 2, "n_kv_heads": 1, "kv_rank": 8, "rope_dim": 4, "window": 4, "n_selected": 4}
ANSA |= {"selection_block": 4, "compression_block": 4, "compression_stride": 4}
SETTINGS = {
    "d_model": 16,
    "vocab_size": 40,
    "max_seq_len": 32,
    "ffns": {"dense": {"d_ff": 20}, "moe": {"kind": "moe", "n_experts": 3, "n_active": 2, "d_ff": 8}},
    "ffn_layers": "dense*2",
    "blocks": {"full": {"kind": "full", "n_heads": 2}, "ansa": ANSA},
    "layers": "ansa.local full",
    "embedding_scale": 2.0,
    "logit_scale": 0.5,
}
SEVERAL = [{}, {"depth": 3, "weight": 2.0}, {"block": "ansa.global", "ffn": "moe", "depth": 2}]


def decoder_of(multi_token: dict | None, **model) -> Decoder:
    """In float64, with norms that are not 1."""
    config = ModelConfig.model_validate({**SETTINGS, **model, "multi_token": multi_token})
    decoder = build_model(config, seed=3).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3, generator=generator)
    return decoder


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(2))


def normed(x: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def expected_losses(decoder: Decoder, tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> list[torch.Tensor]:
    """The summed loss of each module, row by row on the tokens that it has a target for."""
    losses, hidden_BTC = [], decoder.hidden(tokens_BT)
    for k, module in enumerate(decoder.multi_token, start=1):
        length = tokens_BT.shape[1] - k
        embedded = 2.0 * decoder.embedding.weight[tokens_BT[:, k:]]
        read = [normed(embedded, module.embedding_norm), normed(hidden_BTC[:, :length], module.hidden_norm)]
        x, delta = module.layer(
            torch.cat(read, 2) @ module.input.weight.T, None, Context.for_tokens(len(tokens_BT), length)
        )
        hidden_BTC = normed(x + delta, module.norm)
        logits = 0.5 * hidden_BTC @ decoder.embedding.weight.T
        losses.append(F.cross_entropy(logits.flatten(0, 1), labels_BT[:, k:].flatten(), reduction="sum"))
    return losses


@pytest.mark.parametrize("multi_token", SEVERAL, ids=str)
def test_the_loss_is_its_formula(multi_token):
    decoder, tokens_BT, labels_BT = decoder_of(multi_token), tokens(2, 9), tokens(2, 9).roll(-1, 1)
    labels_BT[0, 4:6] = -100
    total = decoder.loss(tokens_BT, labels_BT, reduction="sum")
    numbers = decoder.after_batch()
    losses = expected_losses(decoder, tokens_BT, labels_BT)
    weight, depth = multi_token.get("weight", 0.3), multi_token.get("depth", 1)
    targets = [int((labels_BT[:, k:] != -100).sum()) for k in range(depth + 1)]
    with torch.no_grad():
        of_model = F.cross_entropy(decoder(tokens_BT).flatten(0, 1), labels_BT.flatten(), reduction="sum")
    added = weight / depth * sum(losses)
    torch.testing.assert_close(numbers["multi_token_loss"].double(), sum(losses) / sum(targets[1:]), rtol=1e-5, atol=0)
    if multi_token.get("ffn") == "moe":  # a balance loss is added as well
        assert total > of_model + added
        return
    torch.testing.assert_close(total, of_model + added)
    torch.testing.assert_close(numbers["added_loss"].double(), added / targets[0], rtol=1e-5, atol=0)
    parameters = list(decoder.parameters())
    found = torch.autograd.grad(total, parameters)
    decoder.activation_checkpointing = True
    again = torch.autograd.grad(decoder.loss(tokens_BT, labels_BT, reduction="sum"), parameters)
    for one, other in zip(found, again, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


def test_gradients_by_finite_differences():
    module, context = decoder_of({}).multi_token[0], Context.for_tokens(1, 3)
    leaves = [torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    leaves.append(module.input.weight.detach().clone().requires_grad_())

    def call(hidden_BTC, embedded_BTC, weight):
        return functional_call(module, {"input.weight": weight}, (hidden_BTC, embedded_BTC, context))

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


def test_targets_stay_in_their_row_and_document():
    labels = torch.tensor([[1, 2, 3, 4, 5, -100]])
    starts = torch.tensor([[True, False, False, True, False, False]])
    assert further_labels(labels, 1, None).tolist() == [[2, 3, 4, 5, -100, -100]]
    assert further_labels(labels, 2, None).tolist() == [[3, 4, 5, -100, -100, -100]]
    documents = Documents.from_starts(starts)
    assert further_labels(labels, 1, documents).tolist() == [[2, 3, -100, 5, -100, -100]]
    assert further_labels(labels, 2, documents).tolist() == [[3, -100, -100, -100, -100, -100]]
    assert further_labels(labels, 6, None).tolist() == [[-100] * 6]


def test_documents_of_a_packed_row_are_trained_on_as_alone():
    decoder, tokens_BT = decoder_of({"depth": 2}, document_mask=True), tokens(1, 11)
    starts = torch.zeros(1, 11, dtype=torch.bool)
    starts[0, [0, 4]] = True
    labels_BT = tokens_BT.roll(-1, 1)
    labels_BT[0, [3, 10]] = -100  # of the model's own loss, which crosses the end of a document
    packed = decoder.loss(tokens_BT, labels_BT, starts, reduction="sum")
    parts = ((tokens_BT[:, at], labels_BT[:, at]) for at in (slice(0, 4), slice(4, 11)))
    alone = sum(decoder.loss(*part, reduction="sum") for part in parts)
    torch.testing.assert_close(packed, alone)


@pytest.mark.parametrize("multi_token", SEVERAL, ids=str)
def test_counts_are_those_of_the_built_model(multi_token):
    decoder, plain = decoder_of(multi_token), decoder_of(None)
    cost, without = model_cost(decoder.config, 8), model_cost(plain.config, 8)
    assert cost.parameters["total"] == sum(p.numel() for p in decoder.parameters())
    assert cost.parameters["multi_token"] == sum(p.numel() for p in decoder.multi_token.parameters())
    assert cost.active_parameters == without.active_parameters == without.parameters["total"]
    assert cost.cache_held_bytes == without.cache_held_bytes
    assert "multi_token" not in without.parameters


def test_flops_are_torchs_count():
    flops = []
    for multi_token in ({"block": "full", "depth": 2}, None):
        decoder = build_model(ModelConfig.model_validate({**SETTINGS, "layers": "full*2", "multi_token": multi_token}))
        with torch.no_grad(), use_implementation("reference"), FlopCounterMode(display=False) as counter:
            decoder.loss(tokens(1, 32), tokens(1, 32))
        flops.append(counter.get_total_flops())
    cost = model_cost(decoder_of({"block": "full", "depth": 2}, layers="full*2").config, 32)
    pairs = 2 * 4.0 * 16 * (32 * 32 - 32 * 33 / 2)  # that the mask hides and the reference multiplies
    assert cost.flops_by_part["multi_token"] * 32 == pytest.approx(flops[0] - flops[1] - pairs, rel=0.01)


def test_the_rest_of_the_model_is_as_without_them():
    config = ModelConfig.model_validate({**SETTINGS, "multi_token": {"depth": 2}})
    decoder, plain = build_model(config), build_model(ModelConfig.model_validate(SETTINGS))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, decoder.state_dict()[name]), name
    tokens_BT = tokens(2, 9)
    assert decoder.loss(tokens_BT, tokens_BT) > plain.loss(tokens_BT, tokens_BT)
    decoder.eval(), plain.eval()
    assert torch.equal(decoder.loss(tokens_BT, tokens_BT), plain.loss(tokens_BT, tokens_BT))
    assert torch.equal(decoder(tokens_BT), plain(tokens_BT))
    cache = decoder.new_cache(2, 9)
    assert cache.nbytes == plain.new_cache(2, 9).nbytes
    torch.testing.assert_close(decoder.next_logits(tokens_BT, cache), plain(tokens_BT)[:, -1])


def test_memory_of_a_step_grows_by_a_layer_and_a_head():
    recipe = load_recipe("recipes/tiny/full.yaml")
    with_it = load_recipe("recipes/tiny/full.yaml", ["model.multi_token={}"])
    plain, found = (step_size(each, 256, 4, GPUS["h200"]) for each in (recipe, with_it))
    assert found.loss == 2 * plain.loss
    assert plain.activations / 4 < found.activations - plain.activations < plain.activations / 2


MISTAKES = {
    "multi_token={block: nope}": "model.multi_token.block: unknown block 'nope'; known: ansa, full",
    "multi_token={block: ansa}": "model.multi_token.block: must name a part of the block: ansa.local or ansa.global",
    "multi_token={block: full.x}": "model.multi_token.block: block 'full' (full) has no parts; found 'full.x'",
    "multi_token={ffn: nope}": "model.multi_token.ffn: unknown feed-forward 'nope'; known: dense, moe",
    "multi_token={weight: 0}": "model.multi_token.weight: must be more than 0; found 0",
    "multi_token={depth: 9}": "model.multi_token.depth: must be at most 8; found 9",
    "multi_token={depht: 1}": "unknown key 'depht'",
}


@pytest.mark.parametrize("broken", [False, True], ids=["alone", "beside another mistake"])
@pytest.mark.parametrize("written", MISTAKES)
def test_mistakes_are_named(written, broken, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"name: a\nmodel: {SETTINGS}\n".replace("'", ""))
    more = ["model.d_model=0"] if broken else ["model.vocab_size=264"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"model.{written}", *more])
    assert MISTAKES[written] in str(caught.value)
    assert ("model.d_model" in str(caught.value)) == broken


def test_a_feed_forward_by_name_needs_names():
    plain = {**SETTINGS, "ffns": None, "ffn_layers": None, "ffn": {"d_ff": 8}}
    with pytest.raises(ValidationError, match="is for a model with ffns; ffn is for every layer; found 'dense'"):
        ModelConfig.model_validate({**plain, "multi_token": {"ffn": "dense"}})


def test_show_says_it():
    shown = as_text(load_recipe("recipes/tiny/full.yaml", ["model.multi_token={depth: 2}"]), 120)
    assert "training also predicts the 2 tokens after the next, weight 0.3" in shown
    assert "\nmulti_token " in shown
    model = load_recipe("recipes/tiny/full.yaml", ["model.multi_token={}", "model.norm_place=stream"]).model
    around = "the stream itself is normed before each part; training also predicts the token after the next, weight 0.3"
    assert settings(model)["around the layers"] == around


def test_transformers_model_of_it():
    decoder, tokens_BT = decoder_of({}), tokens(2, 9)
    exported = ZooForCausalLM(ZooConfig(decoder.config.model_dump(mode="json"))).double()
    exported.decoder.load_state_dict(decoder.state_dict())
    exported(tokens_BT, labels=tokens_BT).loss.backward()
    trained = {name for name, parameter in exported.named_parameters() if parameter.requires_grad}
    assert all(exported.get_parameter(name).grad is not None for name in trained)
    assert not any("multi_token" in name for name in trained)
    torch.testing.assert_close(exported(tokens_BT).logits, decoder(tokens_BT))


def write_run(folder, multi_token, **model):
    """A run folder with random weights, and its decoder."""
    from zoo.interop.importing import recipe_of, write_run

    decoder = decoder_of(multi_token, **model).float()
    write_run(folder, recipe_of(folder, decoder.config, "a test", None), decoder.state_dict(), None)
    return decoder


@pytest.mark.parametrize(("before", "now"), [(None, {}), ({}, None), ({"depth": 2}, {"depth": 2, "weight": 1.0})])
def test_weights_to_start_from_may_have_no_modules(before, now, tmp_path):
    (tmp_path / "run").mkdir()
    source, decoder = write_run(tmp_path / "run", before), decoder_of(now).float()
    initial, drawn = Initial.find(str(tmp_path / "run"), tmp_path / "new"), decoder.state_dict()
    drawn = {name: tensor.clone() for name, tensor in drawn.items()}
    initial.check_model(decoder.config)
    initial.load_into(decoder)
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, source.state_dict().get(name, drawn[name])), name
    said = " ".join(initial.notes(decoder.config))
    wanted = "modules are drawn anew" if before is None else "which are left out" if now is None else "weight was 0.3"
    assert wanted in said


def test_other_modules_are_refused_as_weights_to_start_from(tmp_path):
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", {})
    initial = Initial.find(str(tmp_path / "run"), tmp_path / "new")
    with pytest.raises(RecipeError, match=r"multi_token\.1\.\S+ is missing"):
        initial.check_model(decoder_of({"depth": 2}).config)


def test_a_conversion_keeps_the_modules(tmp_path):
    (tmp_path / "run").mkdir()
    before = write_run(tmp_path / "run", {}, layers="full*2")
    near = "near: {kind: window, n_heads: 2, window: 4}\n"
    (tmp_path / "blocks.yaml").write_text(near)
    convert(tmp_path / "run", tmp_path / "out", "near*2", tmp_path / "blocks.yaml", rows=1)
    after = zoo.load(tmp_path / "out")
    assert after.config.multi_token_layers()[0].mixer == before.config.multi_token_layers()[0].mixer
    for name, tensor in before.multi_token.state_dict().items():
        assert torch.equal(tensor, after.multi_token.state_dict()[name]), name
