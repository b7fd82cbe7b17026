"""Forward FLOPs against torch's FlopCounterMode on the reference path, for every kind at three lengths.

The cost model counts visible pairs only; the reference multiplies masked pairs as well, and then throws them away. The
share of each product that its own mask lets through is read off the masks as they are used, and the rest taken out.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo import build_model
from zoo.counting.model_cost import model_cost
from zoo.kernels import attend
from zoo.kernels.choice import reference as choice
from zoo.kernels.dispatch import use_implementation
from zoo.recipe import ModelConfig

HEADS = {"n_heads": 4, "head_dim": 16}
BLOCKS = {
    "full": {"kind": "full", **HEADS, "n_kv_heads": 2},
    "full, mixed widths": {"kind": "full", **HEADS, "n_kv_heads": 1, "v_head_dim": 8, "qk_norm": True},
    "window": {"kind": "window", **HEADS, "window": 40},
    "mla": {"kind": "mla", **HEADS, "kv_rank": 48, "rope_dim": 8, "q_rank": 24},
    "mla, window": {"kind": "mla", **HEADS, "kv_rank": 48, "rope_dim": 8, "window": 100},
    "gla": {"kind": "gla", **HEADS, "kv_rank": 48, "rope_dim": 8},
    "nsa": {"kind": "nsa", **HEADS, "n_kv_heads": 2, "window": 48, "selection_block": 32, "n_selected": 4},
    "nsa, paper": {"kind": "nsa", **HEADS, "pooling": "mlp", "separate_kv": True, "window": 48, "n_selected": 3},
    "ansa.local": {"kind": "ansa", **HEADS, "n_kv_heads": 2, "rope_dim": 8, "window": 70},
    "ansa.global": {"kind": "ansa", **HEADS, "n_kv_heads": 2, "rope_dim": 8, "n_selected": 5},
    "moba": {
        "kind": "attention",
        "projection": {"kind": "gqa", **HEADS, "n_kv_heads": 2},
        "patterns": [{"kind": "moba", "selection_block": 32, "n_selected": 3}],
    },
    "moba, latent": {
        "kind": "attention",
        "projection": {"kind": "gla", **HEADS, "n_kv_heads": 2, "n_latent_heads": 2, "kv_rank": 32, "rope_dim": 8},
        "patterns": [{"kind": "moba", "selection_block": 16, "n_selected": 4}],
    },
    "attention": {
        "kind": "attention",
        "projection": {"kind": "gla", **HEADS, "n_kv_heads": 2, "n_latent_heads": 2, "kv_rank": 32, "rope_dim": 8},
        "patterns": [{"kind": "full"}, {"kind": "window", "window": 33}, {"kind": "compression"}],
    },
}


class Masked:
    """Counts the FLOPs that the reference spends on pairs its masks hide, while its functions run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.flops = 0.0
        self.calls = 0
        for module in ("full", "window", "compression", "selection"):
            monkeypatch.setattr(f"zoo.kernels.{module}.reference.attend", self.attend)
        self._visible_slots, self._choose = choice.visible_slots, choice.choose_blocks
        monkeypatch.setattr(choice, "visible_slots", self.visible_slots)

    def attend(self, q, k, v, visible, scale, **options):
        """Both products of attention are over the pairs of one mask."""
        with FlopCounterMode(display=False) as counter:
            result = attend.attend(q, k, v, visible, scale, **options)
        self.calls += 1
        self.flops += counter.get_total_flops() * (1 - float(visible.float().mean()))
        return result

    def visible_slots(self, start, token, n, block, stride):
        """The choice scores every slot for the first query of each group; [B, c, n] are the ones that count."""
        visible = self._visible_slots(start, token, n, block, stride)
        self.calls += 1
        self.flops += 2.0 * self.heads * self.qk_dim * float((~visible).sum())
        return visible


@pytest.mark.parametrize("seq_len", [160, 320, 512])
@pytest.mark.parametrize("name", BLOCKS)
def test_flops_are_within_a_hundredth_of_torchs_count(name, seq_len, monkeypatch):
    part = name.partition(".")[2]
    layers = f"a.{part}" if part else "a"
    model = ModelConfig.model_validate(
        {
            "d_model": 64,
            "vocab_size": 96,
            "max_seq_len": 512,
            "ffn": {"d_ff": 80},
            "blocks": {"a": BLOCKS[name]},
            "layers": layers,
        }
    )
    built, masked = build_model(model), Masked(monkeypatch)
    point = model.blocks["a"].resolve(64, 512, part or None)
    masked.heads, masked.qk_dim = point.projection.n_heads, point.projection.qk_dim
    with torch.no_grad(), use_implementation("reference"), FlopCounterMode(display=False) as counter:
        built(torch.zeros(1, seq_len, dtype=torch.int64))
    assert masked.calls >= len(point.patterns)
    counted = counter.get_total_flops() - masked.flops
    assert model_cost(model, seq_len).flops_per_token * seq_len == pytest.approx(counted, rel=0.01)


def test_a_model_of_many_layers_is_the_sum(monkeypatch):
    model = ModelConfig.model_validate(
        {"d_model": 64, "vocab_size": 96, "max_seq_len": 512, "ffn": {"kind": "gelu", "d_ff": 80},
         "layers": "(f w)*2 f",
         "blocks": {"f": BLOCKS["full"], "w": BLOCKS["window"]}, "tie_embeddings": False}
    )  # fmt: skip
    masked = Masked(monkeypatch)
    with torch.no_grad(), use_implementation("reference"), FlopCounterMode(display=False) as counter:
        build_model(model)(torch.zeros(1, 256, dtype=torch.int64))
    counted = counter.get_total_flops() - masked.flops
    assert model_cost(model, 256).flops_per_token * 256 == pytest.approx(counted, rel=0.01)
