"""Random models of blocks, feed-forwards and options around them: each is refused, or trains and decodes."""

import random

import pytest
import torch
from pydantic import ValidationError

from zoo.model import build_model
from zoo.recipe import ModelConfig

BLOCKS = {
    "full": {"kind": "full", "n_heads": 2},
    "capped": {"kind": "full", "n_heads": 4, "n_kv_heads": 2, "sinks": True, "score_softcap": 2.0},
    "chunks": {"kind": "chunked", "n_heads": 2, "chunk": 4, "sinks": True},
    "growing": {"kind": "full", "n_heads": 2, "rope": False, "position_temperature": {"every": 3, "scale": 0.5}},
    "near": {"kind": "window", "n_heads": 4, "n_kv_heads": 2, "window": 3, "qk_norm": True},
    "lightning": {"kind": "lightning", "n_heads": 2},
    "mla": {"kind": "mla", "n_heads": 2, "kv_rank": 8, "rope_dim": 4},
    "ansa": {"kind": "ansa", "n_heads": 2, "n_kv_heads": 1, "kv_rank": 8, "rope_dim": 4, "window": 4, "n_selected": 4,
             "selection_block": 4, "compression_block": 4, "compression_stride": 4},
}  # fmt: skip
AROUND = {
    "norm": ["rms", "layer"],
    "norm_bias": [False, False, True],
    "norm_place": ["before", "after", "both", "stream"],
    "parallel": [False, True],
    "residual_scale": [1.0, 0.3],
    "stream_scale": [1.0, 1.0, 2.0],
    "embedding_scale": [1.0, 4.0],
    "logit_scale": [1.0, 0.25],
    "logit_softcap": [None, 5.0],
    "tie_embeddings": [True, False],
    "multi_token": [None, None, {}, {"depth": 2, "weight": 1.5}],
}
DENSE = {"kind": ["swiglu", "geglu", "gelu", "relu2"], "d_ff": [8, 20], "bias": [False, True]}
MOE = {
    "kind": ["moe"],
    "n_experts": [4, 6],
    "n_active": [1, 2, 3],
    "d_ff": [8],
    "n_shared": [0, 1, 2],
    "shared_gate": [False, True],
    "shared_d_ff": [None, 12],
    "expert_bias": [False, False, True],
    "clamp": [None, None, 1.5],
    "router_bias": [False, True],
    "router": ["softmax", "sigmoid"],
    "normalise": [True, True, False],
    "route_scale": [1.0, 2.5],
    "weigh": ["output", "input"],
    "n_groups": [1, 2],
    "groups_active": [None, 1],
    "balance_loss": [0.0, 0.01],
    "z_loss": [0.0, 0.01],
    "balance_rate": [0.0, 0.01],
}


def drawn(rng: random.Random, choices: dict) -> dict:
    return {name: rng.choice(values) for name, values in choices.items()}


def model_section(seed: int) -> dict:
    rng = random.Random(seed)
    names = [rng.choice(list(BLOCKS)) for _ in range(rng.randint(1, 3))]
    n_layers = rng.randint(len(names), 4)
    written = {"d_model": 16, "vocab_size": 40, "max_seq_len": 16, "n_layers": n_layers, **drawn(rng, AROUND)}
    written |= {"blocks": {name: BLOCKS[name] for name in names}, "layers": f"{' '.join(names)} ... cut"}
    ffns = {f"f{i}": drawn(rng, rng.choice([DENSE, MOE])) for i in range(rng.randint(1, 2))}
    if len(ffns) == 1:
        return {**written, "ffn": ffns["f0"]}
    return {**written, "ffns": ffns, "ffn_layers": " ".join(rng.choice(list(ffns)) for _ in range(n_layers))}


def works(config: ModelConfig) -> None:
    """A step of training, decoding in pieces, and the resolved section again."""
    decoder = build_model(config, seed=1).double()
    tokens_BT = torch.randint(40, (2, 11), generator=torch.Generator().manual_seed(0))
    loss = decoder.loss(tokens_BT, tokens_BT.roll(-1, 1))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    decoder.after_batch()
    decoder.eval()
    cache = decoder.new_cache(2, 11)
    parts = [decoder(part, cache=cache) for part in tokens_BT.split([6, 1, 4], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), decoder(tokens_BT))
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_a_random_model_is_refused_or_works(start):
    built, refused = 0, []
    for seed in range(start, start + 20):
        try:
            config = ModelConfig.model_validate(model_section(seed))
        except ValidationError as error:
            refused.append(error.errors())
        else:
            works(config)
            built += 1
    assert all(line["msg"] for lines in refused for line in lines)
    assert built >= 4, "most draws must not be refused"
