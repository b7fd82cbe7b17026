"""`zoo cost`: activations against what autograd keeps, memory and time against sums by hand, the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo import cli
from zoo.blocks import base, parts
from zoo.blocks.base import Context
from zoo.blocks.projections.latent import PerHeadLinear
from zoo.counting.model_cost import model_cost
from zoo.counting.run_cost import GIB, GPUS, _layer_bytes, step_size
from zoo.model import fused
from zoo.model.layer import Layer
from zoo.recipe import ModelConfig, load_recipe
from zoo.report.measure import training_tensors
from zoo.training.device import PEAK_BF16

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes/340m/{}.yaml")
H200 = GPUS["h200"]


class Kept(torch.autograd.Function):
    """Stands for a fused kernel: keeps `tensors` (and its output, if asked) for a backward that is never run."""

    @staticmethod
    def forward(ctx, output, keeps_output, *tensors):
        output = output.clone()
        ctx.save_for_backward(*tensors, *([output] if keeps_output else []))
        return output

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError("only what the forward keeps is counted")


def like_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this CPU, keep what the CUDA implementations keep: Triton's attention its inputs, output and log-sum-exp,
    scaled_dot_product_attention the joined rotary parts, the norm of heads its input, that of the residual stream the
    rounded stream, the feed-forward both products before the gate."""

    def attention(q, k, v, rope, k_rope, *more):
        output, lse = q.new_zeros(*q.shape[:3], v.shape[-1]), q.new_zeros(q.shape[:3], dtype=torch.float32)
        return Kept.apply(output, True, q, k, v, *(x for x in (rope, k_rope, lse, *more) if x is not None)), lse

    def full(q, k, v, *, q_rope, k_rope, **options):
        if q_rope is not None:
            q = torch.cat([q, q_rope], -1)
            k = torch.cat([k, k_rope[:, :, None].expand(-1, -1, k.shape[2], -1)], -1)
        return attention(q, k, v, None, None)[0]

    def window(q, k, v, *, q_rope, k_rope, **options):
        return attention(q, k, v, q_rope, k_rope)[0]

    def compression(q, k, v, *, q_rope, k_rope, **options):
        output, lse = attention(q, k, v, q_rope, k_rope)
        return output, lse.detach()

    def choose(q, k, lse, *, n_selected, query_group, **options):
        return torch.zeros(q.shape[0], -(-q.shape[1] // query_group), k.shape[2], n_selected, dtype=torch.int32)

    def selection(q, k, v, chosen, *, q_rope, k_rope, **options):
        return attention(q, k, v, q_rope, k_rope, chosen)[0]

    def add_norm(x, delta, weight, eps):
        total = x if delta is None else x + delta
        return total, Kept.apply(total.bfloat16(), False, total.bfloat16(), total[..., 0].clone())

    def add_layer_norm(x, delta, weight, bias, eps):
        total = x if delta is None else x + delta
        moments = total[..., 0].float().clone(), total[..., 0].float().clone()
        return total, Kept.apply(total.bfloat16(), False, total.float(), *moments)

    def swiglu(x, w_gate, w_up, w_down):
        gate, up = (x.detach() @ weight.detach().T for weight in (w_gate, w_up))
        return Kept.apply(x, False, x, gate, up)

    def gated_sum(outputs, gate):
        return Kept.apply(outputs[0], False, *outputs, gate)

    monkeypatch.setattr("zoo.blocks.patterns.full.full_attention", full)
    monkeypatch.setattr("zoo.blocks.patterns.window.window_attention", window)
    monkeypatch.setattr("zoo.blocks.patterns.compression.compression_attention", compression)
    monkeypatch.setattr("zoo.blocks.patterns.selection.choose_blocks", choose)
    monkeypatch.setattr("zoo.blocks.patterns.selection.selection_attention", selection)
    monkeypatch.setattr(base, "gated_sum", gated_sum)
    monkeypatch.setattr(parts, "rms_norm", lambda x, weight, eps: Kept.apply(x, False, x))
    monkeypatch.setattr(fused, "add_norm", add_norm)
    monkeypatch.setattr(fused, "add_layer_norm", add_layer_norm)
    monkeypatch.setattr(fused, "swiglu", swiglu)
    monkeypatch.setattr(fused, "compute_dtype", lambda x: torch.bfloat16)


def kept_bytes(layer: Layer, x: torch.Tensor, context: Context) -> int:
    """Bytes of the storages that autograd keeps, without weights, their casts and the rotary tables."""
    weights = {parameter.shape for parameter in layer.parameters() if parameter.ndim == 2}
    weights |= {shape[::-1] for shape in weights}
    ups = [module for module in layer.modules() if isinstance(module, PerHeadLinear)]  # multiplied as [J, rows, R]
    weights |= {(up.n_latent_heads, up.out_features // up.n_latent_heads, up.in_features) for up in ups}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        output = layer(x, None, context)
    shared = [*layer.parameters(), *(x for table in context._tables.values() for x in (table.cos_BTR, table.sin_BTR))]
    for tensor in shared:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


HEADS = {"n_heads": 8, "head_dim": 32}
BLOCKS = [
    ({"kind": "full", **HEADS, "n_kv_heads": 2}, None),
    ({"kind": "full", **HEADS, "qk_norm": True}, None),
    ({"kind": "window", **HEADS, "n_kv_heads": 4}, None),
    ({"kind": "window", **HEADS, "qk_norm": True, "qk_norm_place": "after", "output_gate": "head"}, None),
    ({"kind": "full", **HEADS, "qk_norm": True, "qk_norm_over": "width", "output_gate": "channel"}, None),
    ({"kind": "full", **HEADS, "rope": False, "qkv_bias": True}, None),
    ({"kind": "mla", **HEADS, "rope_dim": 0}, None),
    ({"kind": "mla", **HEADS}, None),
    ({"kind": "mla", **HEADS, "window": 32, "q_rank": 96}, None),
    ({"kind": "gla", **HEADS, "n_kv_heads": 4}, None),
    ({"kind": "nsa", **HEADS, "n_kv_heads": 2}, None),
    ({"kind": "nsa", **HEADS, "n_kv_heads": 2, "separate_kv": True}, None),
    ({"kind": "ansa", **HEADS}, "local"),
    ({"kind": "ansa", **HEADS}, "global"),
]


@pytest.mark.parametrize(("block", "part"), BLOCKS, ids=lambda value: str(value)[:70])
@pytest.mark.parametrize("ffn", ["swiglu", "gelu"])
def test_activations_are_what_autograd_keeps(block, part, ffn, monkeypatch):
    like_cuda(monkeypatch)
    seq_len = 320
    settings = {"d_model": 192, "vocab_size": 96, "max_seq_len": 512, "ffn": {"kind": ffn, "d_ff": 400}}
    layers = f"a.{part}" if part else "a"
    model = ModelConfig.model_validate({**settings, "blocks": {"a": block}, "layers": layers})
    layer, context = Layer(model, model.expanded()[0]), Context.for_tokens(1, seq_len)
    x = torch.zeros(1, seq_len, 192, requires_grad=True)
    found = kept_bytes(layer, x, context)
    attention = model.blocks["a"].resolve(192, seq_len, part).activation_bytes(seq_len)
    assert _layer_bytes(model, model.ffn, seq_len) + attention == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("place", ["before", "after", "both", "stream"])
@pytest.mark.parametrize("parallel", [False, True])
def test_activations_around_the_parts_are_what_autograd_keeps(norm, place, parallel, monkeypatch):
    like_cuda(monkeypatch)
    settings = {"d_model": 192, "vocab_size": 96, "max_seq_len": 512, "ffn": {"kind": "geglu", "d_ff": 200}}
    settings |= {"blocks": {"a": {"kind": "full", **HEADS, "n_kv_heads": 2}}, "layers": "a"}
    around = {"norm": norm, "norm_place": place, "parallel": parallel, "residual_scale": 0.5}
    model = ModelConfig.model_validate({**settings, **around})
    layer, context = Layer(model, model.expanded()[0]), Context.for_tokens(1, 320)
    found = kept_bytes(layer, torch.zeros(1, 320, 192, requires_grad=True), context)
    attention = model.blocks["a"].resolve(192, 320).activation_bytes(320)
    assert _layer_bytes(model, model.ffn, 320) + attention == pytest.approx(found, rel=0.02)


def test_parts_by_hand():
    recipe = load_recipe(RECIPE.format("full"))
    size, parameters = step_size(recipe, 8192, 2, H200), model_cost(recipe.model, 8192).parameters["total"]
    assert (size.weights, size.gradients, size.optimiser) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert size.copies == 2 * (parameters - 32000 * 1024 - 49 * 1024)
    per_token = 24 * (2 * (2 * 1024 + 4) + 2 * (1024 + 2 * 2816) + 2 * 1024 + 2 * (16 + 4 + 4) * 64 + 16 * (2 * 64 + 4))
    assert size.activations == 2 * 8192 * per_token
    forward = model_cost(recipe.model, 8192).flops_per_token
    assert size.compute_s == pytest.approx(3 * forward * 2 * 8192 / 989e12)
    assert size.least_s == max(size.compute_s, size.memory_s)
    assert size.accumulates, "64 rows a batch, 2 at a time"
    assert size.peak == 4 * 4 * parameters + size.copies + size.activations + size.loss


def test_checkpointing_keeps_the_inputs_and_one_layer():
    recipe, wide = (load_recipe(RECIPE.format("nsa"), [f"train.residual_stream={name}"]) for name in ("bf16", "fp32"))
    plain, less = (step_size(recipe, 8192, 1, H200, checkpointing) for checkpointing in (False, True))
    assert less.activations == plain.activations_other
    assert less.activations == 24 * 2 * 1024 * 8192 + plain.activations // 24
    assert step_size(wide, 8192, 1, H200, True).activations == less.activations + 24 * 2 * 1024 * 8192
    assert less.compute_s == pytest.approx(plain.compute_s * 4 / 3)
    assert less.peak < plain.peak


def test_whether_it_fits_grows_with_rows():
    recipe = load_recipe(RECIPE.format("ansa"))
    fits = [step_size(recipe, 8192, rows, H200).fits(H200) for rows in (1, 8, 32, 64)]
    assert fits == sorted(fits, reverse=True)
    assert fits[0]
    assert not fits[-1]
    assert step_size(recipe, 8192, 8, H200).fits(GPUS["h100"]) == (
        step_size(recipe, 8192, 8, H200).peak < 0.92 * 79.2 * GIB
    )


def test_peaks_agree_with_those_of_training():
    for gpu in GPUS.values():
        assert next(peak for name, peak in PEAK_BF16.items() if name in gpu.name) == gpu.peak_flops


def test_the_command(capsys):
    path = RECIPE.format("ansa")
    assert cli.run(["cost", path, "--gpu", "H100", "--seq-len", "4096", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = step_size(load_recipe(path), 4096, 1, GPUS["h100"])
    assert found["plain"]["peak"] == expected.peak
    assert found["plain"]["fits"] is True
    assert found["checkpointing"]["activations"] == expected.activations_other
    assert cli.run(["cost", path, "--rows", "64"]) == 0
    out = capsys.readouterr().out
    for text in ("ansa_340m on one NVIDIA H200: 64 x 8,192 tokens", "no: ", "peak (estimate)", "most tokens/s"):
        assert text in out
    assert cli.run(["cost", path, "--gpu", "h300"]) == 2
    assert "unknown GPU 'h300'; known: h200, h100, a100. Did you mean 'h200'?" in capsys.readouterr().err


def test_the_command_imports_no_torch():
    code = f"from zoo import cli; import sys; cli.run(['cost', {RECIPE.format('nsa')!r}]); "
    code += "print([name for name in ('torch', 'matplotlib', 'numpy') if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == "[]\n"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["full", "nsa", "ansa"])
def test_the_peak_is_within_15_percent_of_what_cuda_allocates(name):
    recipe = load_recipe(RECIPE.format(name))
    measured = training_tensors(recipe, 8192)
    assert step_size(recipe, 8192, 1, H200).peak == pytest.approx(measured, rel=0.15)
