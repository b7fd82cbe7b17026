"""`zoo export --as FAMILY`: what transformers loads without code of ours, or the reason why there is no such model."""

import json

import pytest
import torch
import transformers

import zoo
from tests.zoo.interop.models import EACH_FAMILY, SIZES, save
from zoo.cli import run as zoo_command
from zoo.export.tokenizer_files import bytes_as_subwords
from zoo.export.writing import ExportError, export
from zoo.interop.architecture import facts, read_config, write_config
from zoo.interop.errors import InteropError
from zoo.interop.families.minimax import DECAYS
from zoo.interop.importing import import_folder
from zoo.recipe import ModelConfig


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_an_imported_model_is_exported_as_it_was(tmp_path, name):
    torch.set_num_threads(1)
    theirs = save(name, tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "run")
    export(tmp_path / "run", tmp_path / "back", family=theirs.config.model_type)
    assert not (tmp_path / "back" / "modeling_zoo.py").exists()
    eager = {"attn_implementation": "eager"}  # sdpa, the default, leaves the caps of Gemma 2 out
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", **eager).eval()
    assert type(back) is type(theirs)
    found, expected = back.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for tensor in expected:
        if tensor.endswith(DECAYS):  # of MiniMax: follow from its config, and are as long as a chunk of the computation
            continue
        torch.testing.assert_close(found[tensor], expected[tensor], rtol=0, atol=1e-7)
    tokens_BT = torch.randint(0, SIZES["vocab_size"], (1, 25), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = zoo.load(tmp_path / "run")(tokens_BT)
        torch.testing.assert_close(back(tokens_BT).logits, ours, rtol=1e-5, atol=1e-5)


def model(layers="a*2", block=None, **keys):
    block = {"kind": "full", "n_heads": 2, "n_kv_heads": 1, **(block or {})}
    sizes = {"d_model": 16, "vocab_size": 264, "max_seq_len": 64, "ffn": {"kind": "swiglu", "d_ff": 24}}
    blocks = {"a": block, "w": {"kind": "window", "n_heads": 2, "n_kv_heads": 1, "window": 8}}
    return ModelConfig.model_validate({**sizes, "blocks": blocks, "layers": layers, **keys})


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_of_ours_that_is_one_of_theirs(family):
    made = model(block={"qk_norm": True, "norm_eps": 1e-5} if family == "qwen3" else {})
    _, config = write_config(family, made)
    _, back = read_config(config, "config.json")
    assert facts(back) == facts(made)


REFUSED = {
    "another projection": (
        "llama",
        model(block={"kind": "gla", "n_latent_heads": 1}),
        r"layer 0 \(a\): llama has grouped-query .* found GLA",
    ),
    "other patterns": (
        "mistral",
        model(block={"kind": "nsa"}),
        r"layer 0 \(a\): mistral has no such pattern: compression, selection, window",
    ),
    "another feed-forward": (
        "llama",
        model(ffn={"kind": "gelu", "d_ff": 8}),
        r"layer 0 \(a\): llama has a feed-forward geglu or swiglu; found gelu",
    ),
    "no biases": (
        "llama",
        model(block={"qkv_bias": True}),
        r"cannot have this model: layers\[0\]\.projection.qkv_bias is true; in llama it is false",
    ),
    "qwen2 has biases": ("qwen2", model(), r"layers\[0\]\.projection.qkv_bias is false; in qwen2 it is true"),
    "qwen3 has norms": ("qwen3", model(), r"layers\[0\]\.projection.qk_norm is false; in qwen3 it is true"),
    "the norm's epsilon": (
        "qwen3",
        model(block={"qk_norm": True, "norm_eps": 1e-3}),
        r"layers\[0\]\.projection.norm_eps is 0.001; in qwen3 it is 1e-05",
    ),
    "a window in some layers": ("mistral", model("a w"), r"layers\[1\]\.patterns"),
    "a window": ("llama", model("a w"), r"layers\[1\]\.patterns"),
    "another base in one layer": (
        "llama",
        model(["a", {"use": "a", "with": {"rope_theta": 500.0}}]),
        r"layers\[1\]\.projection.rope_theta is 500.0; in llama it is 10000.0",
    ),
    "values of another width": (
        "llama",
        model(block={"v_head_dim": 4}),
        r"projection.v_head_dim is 4; in llama it is 8",
    ),
    "a gate": ("llama", model(block={"output_gate": "head"}), r"layers\[0\]\.output_gate is 'head'; in llama"),
    "no rotation": (
        "llama",
        model(block={"rope": False}),
        r"layers\[0\]\.projection.rope is false; in llama it is true",
    ),
    "a scale": ("llama", model(block={"score_scale": 0.5}), r"layers\[0\]\.projection.score_scale is 0.5; in llama"),
    "an unknown family": ("lama", model(), r"--as: unknown model_type 'lama'; .* Did you mean 'llama'"),
}


def test_a_text_model_by_the_name_of_its_format():
    assert write_config("gemma3", gemma3())[1]["model_type"] == "gemma3_text"
    with pytest.raises(InteropError, match="gemma3: cannot have this model: embedding_scale is 1"):
        write_config("gemma3", gemma3(embedding_scale=1.0))


def gemma3(**keys):
    block = {"qk_norm": True, "norm_eps": 1e-6, "head_dim": 8, "score_scale": 0.25, "rope_theta": 1e6}
    around = {"ffn": {"kind": "geglu", "gelu": "tanh", "d_ff": 24}, "norm_place": "both", "embedding_scale": 4.0}
    return model(block=block, norm_eps=1e-6, **(around | keys))


@pytest.mark.parametrize(("family", "made", "why"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_the_family_has_not_is_refused_with_the_reason(family, made, why):
    with pytest.raises(InteropError, match=why):
        write_config(family, made)


def test_the_command(tmp_path, capsys):
    save("llama", tmp_path / "theirs", keys={"vocab_size": 300})
    bytes_as_subwords().save(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "run")
    out = str(tmp_path / "out")
    assert zoo_command(["export", str(tmp_path / "run"), out, "--as", "llama", "--dtype", "bf16"]) == 0
    assert f'from_pretrained("{out}")' in capsys.readouterr().out
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert (loaded.config.eos_token_id, loaded.config.pad_token_id) == (256, None)
    assert transformers.AutoTokenizer.from_pretrained(out)("a b")["input_ids"] == [97, 32, 98]
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 256
    assert zoo_command(["export", str(tmp_path / "run"), out + "2", "--as", "qwen3"]) == 2
    assert "qwen3: cannot have this model: layers[0].projection.qk_norm is false" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()
    with pytest.raises(ExportError, match="--as llama: needs --format hf; found safetensors"):
        export(tmp_path / "run", tmp_path / "out2", "safetensors", family="llama")


@pytest.mark.parametrize("kind", ["gated_deltanet", "kda", "mamba2"])
def test_a_state_with_its_widths_written_out_is_the_same_model(kind):
    """Derived numbers are compared as they come out, not as they are written."""
    blocks = {"a": {"kind": kind}}
    sizes = {"d_model": 128, "vocab_size": 264, "max_seq_len": 64, "ffn": {"kind": "swiglu", "d_ff": 24}}
    written = ModelConfig.model_validate({**sizes, "blocks": blocks, "layers": "a*2"})
    (mixer, *_) = (layer.mixer for layer in written.expanded())
    names = [name for name, value in type(written.blocks["a"])().filled(128).items() if value is not None]
    spelt = {"a": {"kind": kind, **{name: getattr(mixer, name) for name in names}}}
    other = ModelConfig.model_validate({**sizes, "blocks": spelt, "layers": "a*2"})
    assert written.blocks != other.blocks
    assert facts(written) == facts(other)
