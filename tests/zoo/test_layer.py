"""What stands around attention and feed-forward: norms and their places, parallel parts, scales, capped logits.

Each model is compared with its formulas, written out on the modules of its attention and feed-forward.
"""

import itertools

import pytest
import torch

from zoo.blocks.context import Context
from zoo.counting.model_cost import model_cost
from zoo.errors import RecipeError
from zoo.export.transformers_model import ZooConfig, ZooForCausalLM
from zoo.model import Decoder, build_model, fused
from zoo.recipe import ModelConfig, load_recipe
from zoo.report.show import as_text

SETTINGS = {
    "d_model": 24,
    "vocab_size": 40,
    "max_seq_len": 32,
    "ffn": {"kind": "geglu", "d_ff": 20},
    "blocks": {"full": {"kind": "full", "n_heads": 2}, "near": {"kind": "window", "n_heads": 2, "window": 4}},
    "layers": "full near",
}
NORMS = [{"norm": "rms"}, {"norm": "layer"}, {"norm": "layer", "norm_bias": True}]
PLACES = ["before", "after", "both", "stream"]
AROUND = [
    {**norm, "norm_place": place, "parallel": parallel}
    for norm, place, parallel in itertools.product(NORMS, PLACES, [False, True])
]
SCALES = {"residual_scale": 0.25, "stream_scale": 1.7, "embedding_scale": 5.0, "logit_scale": 0.5, "logit_softcap": 3.0}
AROUND += [{name: value} for name, value in SCALES.items()]
AROUND += [{**each, **SCALES} for each in (AROUND[2], AROUND[6], AROUND[9])]


def config(around: dict, **model) -> ModelConfig:
    return ModelConfig.model_validate({**SETTINGS, **around, **model})


def decoder_of(around: dict, **model) -> Decoder:
    """A decoder in float64 whose norms are not 1 and whose biases are not 0."""
    decoder = build_model(config(around, **model)).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            mean = 1.0 if parameter.ndim == 1 else 0.0
            parameter.normal_(mean, 0.3, generator=generator)
    return decoder


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(2))


def normed(norm: torch.nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
    """RMSNorm and LayerNorm by their definitions."""
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
    return y if getattr(norm, "bias", None) is None else y + norm.bias


def expected_logits(decoder: Decoder, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The model by its formulas: c x + s post(part(pre(x))), one part after the other or both of the same x."""
    model, context = decoder.config, Context.for_tokens(*tokens_BT.shape)

    def norm(module, x):
        return x if module is None else normed(module, x, model.norm)

    x = model.embedding_scale * decoder.embedding.weight[tokens_BT]
    for layer in decoder.layers:
        read = norm(layer.attention_norm, x)
        x = model.stream_scale * (read if model.norm_place == "stream" else x)
        attended = model.residual_scale * norm(layer.attention_post_norm, layer.attention(read, context))
        if model.parallel:
            made = norm(layer.feed_forward_post_norm, layer.feed_forward(read, context))
        else:
            read = norm(layer.feed_forward_norm, x + attended)
            x = model.stream_scale * (read if model.norm_place == "stream" else x + attended)
            made, attended = norm(layer.feed_forward_post_norm, layer.feed_forward(read, context)), 0
        x = x + attended + model.residual_scale * made
    logits = model.logit_scale * norm(decoder.norm, x) @ decoder.head_weight.T
    cap = model.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("around", AROUND, ids=str)
def test_the_model_is_its_formulas(around):
    decoder, tokens_BT = decoder_of(around), tokens(2, 9)
    places = {"attention_norm", "feed_forward_norm", "attention_post_norm", "feed_forward_post_norm"}
    built = {name for name in places if getattr(decoder.layers[0], name) is not None}
    place, parallel = around.get("norm_place", "before"), around.get("parallel", False)
    wanted = {"attention_post_norm", "feed_forward_post_norm"} if place in ("after", "both") else set()
    if place != "after":
        wanted |= {"attention_norm"} | (set() if parallel else {"feed_forward_norm"})
    assert built == wanted
    torch.testing.assert_close(decoder(tokens_BT), expected_logits(decoder, tokens_BT))


@pytest.mark.parametrize("around", AROUND, ids=str)
def test_its_loss_gradients_and_counts_agree(around):
    decoder, tokens_BT, labels_BT = decoder_of(around), tokens(2, 9), tokens(2, 9).roll(-1, 1)
    labels_BT[0, :3] = -100
    loss = decoder.loss(tokens_BT, labels_BT)
    expected = expected_logits(decoder, tokens_BT).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(expected, labels_BT.flatten())
    torch.testing.assert_close(loss, expected)
    parameters = list(decoder.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    decoder.activation_checkpointing = True
    again = torch.autograd.grad(decoder.loss(tokens_BT, labels_BT), parameters)
    decoder.activation_checkpointing = False
    for ours, theirs in zip(again, torch.autograd.grad(decoder.loss(tokens_BT, labels_BT), parameters), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model_cost(decoder.config, 9).parameters["total"] == sum(p.numel() for p in parameters)


@pytest.mark.parametrize("around", AROUND, ids=str)
def test_token_by_token_it_computes_the_same(around):
    decoder, tokens_BT = decoder_of(around), tokens(2, 9)
    cache = decoder.new_cache(2, 9)
    parts = [decoder(part, cache=cache) for part in tokens_BT.split([5, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), decoder(tokens_BT))
    cache.reset()
    torch.testing.assert_close(decoder.next_logits(tokens_BT, cache), decoder(tokens_BT)[:, -1])


@pytest.mark.parametrize("around", AROUND[-2:], ids=str)
def test_transformers_model_of_it(around):
    decoder, tokens_BT = decoder_of(around), tokens(2, 9)
    exported = ZooForCausalLM(ZooConfig(decoder.config.model_dump(mode="json"))).double()
    exported.decoder.load_state_dict(decoder.state_dict())
    output = exported(tokens_BT, labels=tokens_BT, output_hidden_states=True)
    torch.testing.assert_close(output.logits, decoder(tokens_BT))
    torch.testing.assert_close(output.loss, decoder.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]), check_dtype=False)
    torch.testing.assert_close(output.hidden_states[0], decoder.embed(tokens_BT))
    torch.testing.assert_close(decoder.logits(output.hidden_states[-1]), output.logits)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_gradients_of_a_layer(place, parallel):
    """By finite differences, with regard to the stream and to what is not yet added to it."""
    around = {"norm_place": place, "parallel": parallel, "residual_scale": 0.5, "stream_scale": 1.7}
    layer, context = decoder_of(around).layers[0], Context.for_tokens(1, 3)
    leaves = [torch.randn(1, 3, 24, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda x, delta: layer(x, delta, context), leaves, fast_mode=True)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_the_layer_norm(bias):
    x, delta, weight, shift = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (2, 3, 5), (5,), (5,))
    )
    leaves = [x, delta, weight, *([shift] if bias else [])]
    call = lambda x, delta, weight, shift=None: fused.add_layer_norm(x, delta, weight, shift, 1e-3)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)
    torch.testing.assert_close(call(*leaves)[0], x + delta)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_of_scaled_and_capped_logits(softcap):
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    head = torch.randn(9, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 8, -100, 3, 3])
    assert torch.autograd.gradcheck(lambda z: fused.final_logits(z, 0.7, softcap), (3 * x,))
    assert torch.autograd.gradcheck(
        lambda x, head: fused.linear_cross_entropy(x, head, labels, 0.7, softcap), (x, head)
    )


def test_capped_logits_keep_their_dtype_and_bound():
    logits = torch.tensor([-1e4, -1.0, 0.0, 40.0], dtype=torch.bfloat16)
    found = fused.final_logits(logits, 1.0, 30.0)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), 30 * torch.tanh(logits.float() / 30), rtol=2**-8, atol=0)
    assert fused.final_logits(logits, 1.0, None) is logits


@pytest.mark.gpu
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 5.0), (0.3, None), (0.3, 5.0)])
def test_the_fused_loss_on_a_gpu(scale, softcap):
    generator = torch.Generator().manual_seed(0)
    x, head = (torch.randn(n, 64, generator=generator, dtype=torch.float64) for n in (300, 1000))
    labels = torch.randint(1000, (300,), generator=generator)
    labels[:50] = -100
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        leaves = [t.to(device, dtype).requires_grad_() for t in (x, head)]
        loss = fused.linear_cross_entropy(*leaves, labels.to(device), scale, softcap)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for wanted, found in zip(*results, strict=True):
        error = (found.double().cpu() - wanted).norm() / wanted.norm()
        assert error < 2e-3


def test_show_says_what_differs(tmp_path):
    path = tmp_path / "around.yaml"
    text = "name: a\nmodel: {d_model: 24, vocab_size: 264, max_seq_len: 32, ffn: {d_ff: 8}, layers: full,\n"
    text += "  blocks: {full: {kind: full, n_heads: 2}}"
    path.write_text(text + ", norm: layer, norm_place: both, parallel: true, logit_softcap: 30.0}\n")
    shown = as_text(load_recipe(path), 120)
    assert "LayerNorm; norms before and after each part; attention and feed-forward in parallel; logits capped" in shown
    path.write_text(text + "}\n")
    assert "norms" not in as_text(load_recipe(path), 120).split("parameters")[0]


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("norm: rmsnorm", "model.norm: must be 'rms' or 'layer'; found 'rmsnorm'"),
        ("norm_bias: true", "model.norm_bias: needs norm: layer; found true with norm: rms"),
        ("norm_bias: true, d_model: 0", "model.norm_bias: needs norm: layer; found true with norm: rms"),
        ("norm_place: behind", "model.norm_place: must be 'before', 'after', 'both' or 'stream'; found 'behind'"),
        ("parallel: 1", "model.parallel: must be true or false; found 1"),
        ("logit_softcap: 0", "model.logit_softcap: must be more than 0; found 0"),
        ("residual_scale: .inf", "model.residual_scale: must be"),
        ("logit_scale: -1.0", "model.logit_scale: must be more than 0; found -1.0"),
        ("embeding_scale: 2.0", "unknown key 'embeding_scale'"),
    ],
)
def test_mistakes_are_named(written, why, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "name: a\nmodel:\n  vocab_size: 264\n  max_seq_len: 32\n  ffn: {d_ff: 8}\n  layers: full\n"
        "  blocks: {full: {kind: full, n_heads: 2}}\n  d_model: 24\n"
    )
    overrides = [part.replace(": ", "=") for part in written.split(", ")]
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"model.{each}" for each in overrides])
    assert why in str(caught.value)
