"""torch.compile makes one graph of a whole model, on every Python that is supported."""

import json

import pytest
import torch

import zoo
from zoo.recipe import ModelConfig

SELECTION = {"n_kv_heads": 2, "compression_block": 8, "compression_stride": 8, "selection_block": 8, "n_selected": 3}
KINDS = {
    "full": {},
    "full, yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "mla, llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 32}},
    "full, every option of scores": {"sinks": True, "score_softcap": 3.0, "position_temperature": {"every": 4}},
    "window": {"window": 8},
    "chunked": {"chunk": 5, "sinks": True},
    "mla": {},
    "gla": {},
    "nsa": {**SELECTION, "window": 8},
    "ansa": {"n_kv_heads": 2, "rope_dim": 4, "window": 8, "n_selected": 3},
    "mla, shared": {"kind": "mla", "share_kv": 2},
    "moba": {
        "kind": "attention",
        "projection": {"kind": "gqa", "n_heads": 4},
        "patterns": [{"kind": "moba", "selection_block": 8}],
    },
    "gated_linear": {},
    "lightning": {},
    "gated_deltanet": {},
    "kda": {},
    "mamba2": {"v_head_dim": 8, "state_dim": 8},
}


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph(kind):
    """functools.cached_property of Python 3.11 takes a lock, which Dynamo cannot enter; that of 3.12 has none."""
    own = {} if kind == "moba" else {"n_heads": 4}
    block = {"kind": kind.partition(",")[0], **own, **KINDS[kind]}
    sizes = {"d_model": 32, "vocab_size": 64, "max_seq_len": 64, "ffn": {"d_ff": 32}}
    text = json.dumps({**sizes, "blocks": {"a": block}, "layers": "a*2" if kind in ("ansa", "mla, shared") else "a"})
    model = zoo.build_model(ModelConfig.model_validate_json(text, strict=True))
    tokens = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    found = torch.compile(model, fullgraph=True, backend="eager")(tokens)
    torch.testing.assert_close(found, model(tokens))
