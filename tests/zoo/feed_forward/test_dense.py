"""The dense feed-forwards: formulas written out, gradients, counts, and what a recipe may say."""

import math
import sys
import types
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.blocks.context import Context
from zoo.blocks.registry import load
from zoo.counting.model_cost import model_cost
from zoo.errors import RecipeError
from zoo.feed_forward.dense_config import Dense
from zoo.kernels.dispatch import use_implementation
from zoo.model import build_model
from zoo.parts import FEED_FORWARDS
from zoo.recipe import ModelConfig, load_recipe

D_MODEL, D_FF = 12, 20
CONFIGS = [
    {"kind": "swiglu"},
    {"kind": "geglu"},
    {"kind": "geglu", "gelu": "tanh"},
    {"kind": "gelu"},
    {"kind": "gelu", "gelu": "tanh"},
    {"kind": "relu2"},
]
CONFIGS += [{**each, "bias": True} for each in CONFIGS]


def built(fields: dict, d_model: int = D_MODEL) -> tuple[Dense, nn.Module]:
    """(config, module with random float64 weights)."""
    config = FEED_FORWARDS.config_class(fields["kind"])(d_ff=D_FF, **fields)
    module = load(config.module)(config, d_model).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return config, module


def expected(fields: dict, state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The kind's formula in the terms of its paper."""

    def affine(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))

    def gelu(x: torch.Tensor) -> torch.Tensor:
        if fields.get("gelu") == "tanh":
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    up = affine("up", x)
    hidden = {
        "swiglu": lambda: affine("gate", x) / (1 + torch.exp(-affine("gate", x))) * up,
        "geglu": lambda: gelu(affine("gate", x)) * up,
        "gelu": lambda: gelu(up),
        "relu2": lambda: torch.where(up > 0, up**2, 0.0),
    }[fields["kind"]]()
    return affine("output", hidden)


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_it_is_the_papers_formula_with_its_gradients(fields):
    _, module = built(fields)
    x = torch.randn(2, 3, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    context = Context.for_tokens(2, 3)
    torch.testing.assert_close(module(x, context), expected(fields, module.state_dict(), x))
    assert torch.autograd.gradcheck(lambda x: module(x, context), (x,))
    for name, parameter in module.named_parameters():
        other = {key: value for key, value in module.state_dict().items() if key != name}
        (ours,) = torch.autograd.grad(module(x, context).square().sum(), parameter)
        (theirs,) = torch.autograd.grad(expected(fields, {**other, name: parameter}, x).square().sum(), parameter)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_parameters_and_flops_are_counted(fields):
    config, module = built(fields)
    assert config.parameters(D_MODEL) == sum(p.numel() for p in module.parameters())
    with use_implementation("reference"), FlopCounterMode(display=False) as counter:
        module(torch.ones(1, 7, D_MODEL, dtype=torch.float64), Context.for_tokens(1, 7))
    assert 7 * config.flops(D_MODEL) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("fields", [each for each in CONFIGS if each != {"kind": "swiglu"}], ids=str)
def test_what_autograd_keeps_is_counted(fields):
    """Of all but the fused kind, which keeps less on a GPU than here."""
    config, module = built(fields)
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel() * 2  # bytes in bfloat16
        return tensor

    x = torch.randn(1, 8, D_MODEL, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module(x, Context.for_tokens(1, 8))
    assert sum(kept.values()) == 8 * config.activation_bytes(D_MODEL)
    y.sum().backward()


def model(fields: dict) -> ModelConfig:
    settings = {"d_model": 16, "vocab_size": 30, "max_seq_len": 8, "blocks": {"a": {"kind": "full", "n_heads": 2}}}
    return ModelConfig.model_validate({**settings, "layers": "a*2", "ffn": {"d_ff": 8, **fields}})


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_a_model_generates_what_it_computes_at_once(fields):
    decoder = build_model(model(fields)).eval()
    tokens_BT = torch.arange(8)[None]
    cache = decoder.new_cache(1, 8)
    steps = [decoder(tokens_BT[:, t : t + 1], cache=cache) for t in range(8)]
    torch.testing.assert_close(torch.cat(steps, 1), decoder(tokens_BT))
    biases = [p for name, p in decoder.named_parameters() if name.endswith("bias")]
    assert bool(biases) == fields.get("bias", False)
    assert not any(bias.any() for bias in biases)


class Swish(Dense):
    """A kind of another package: W_down swish(W_up x)."""

    module: ClassVar[str] = "zoo_swish:SwishModule"

    kind: Literal["swish"] = Field("swish", description="Ungated SiLU.")

    def activation_bytes(self, d_model: int) -> int:
        return 2 * (d_model + 2 * self.d_ff)


class SwishModule(nn.Module):
    def __init__(self, config: Swish, d_model: int):
        super().__init__()
        self.up = nn.Linear(d_model, config.d_ff, config.bias)
        self.output = nn.Linear(config.d_ff, d_model, config.bias)

    def forward(self, x_BTC, context):
        return self.output(nn.functional.silu(self.up(x_BTC)))


def test_a_plugin_adds_a_kind(monkeypatch, tmp_path):
    """Named under `plugins:`; nothing else in the zoo knows of it."""
    module = types.ModuleType("zoo_swish")
    module.Swish, module.SwishModule = Swish, SwishModule
    monkeypatch.setitem(sys.modules, "zoo_swish", module)
    monkeypatch.setattr(FEED_FORWARDS, "own", dict(FEED_FORWARDS.own))
    (tmp_path / "swish_plugin.py").write_text(
        "from zoo.blocks import register\nregister('swish', 'zoo_swish:Swish', family='ffns')\n"
    )
    monkeypatch.setitem(sys.modules, "swish_plugin", None)
    del sys.modules["swish_plugin"]  # taken out again with the rest
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "swish.yaml"
    path.write_text(
        "name: swish\nplugins: [swish_plugin]\nmodel:\n  d_model: 16\n  vocab_size: 264\n  max_seq_len: 32\n"
        "  ffn: {kind: swish, d_ff: 24, bias: true}\n  blocks: {full: {kind: full, n_heads: 2}}\n  layers: full*2\n"
    )
    recipe = load_recipe(path)
    decoder = build_model(recipe)
    assert isinstance(decoder.layers[1].feed_forward, SwishModule)
    assert model_cost(recipe.model, 32).parameters["ffn"] == 2 * (2 * 16 * 24 + 24 + 16)
    assert decoder.layers[0].feed_forward.output.weight.std() < decoder.layers[0].feed_forward.up.weight.std()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ("{kind: gelu, d_ff: 8, gelu: fast}", "model.ffn.gelu: must be 'exact' or 'tanh'; found 'fast'"),
        ("{kind: relu2, d_ff: 8, gelu: tanh}", "model.ffn.gelu: unknown key 'gelu'; known: kind, d_ff, bias"),
        ("{kind: geglu}", "model.ffn.d_ff: is required"),
        ("{kind: geglu, d_ff: 8, bias: 1}", "model.ffn.bias: must be true or false; found 1"),
        ("{kind: gegelu, d_ff: 8}", "Did you mean 'geglu'?"),
    ],
)
def test_mistakes_are_named(fields, why, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        f"name: wrong\nmodel:\n  d_model: 16\n  vocab_size: 264\n  max_seq_len: 32\n  ffn: {fields}\n"
        "  blocks: {full: {kind: full, n_heads: 2}}\n  layers: full*2\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert why in str(caught.value)
