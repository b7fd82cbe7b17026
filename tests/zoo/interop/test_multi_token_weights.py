"""Modules that predict further tokens in folders of transformers, which keeps their tensors out of its own models."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.zoo.interop.models import save
from zoo.export.writing import export, export_command
from zoo.interop.errors import InteropError
from zoo.interop.importing import import_folder
from zoo.model.multi_token import further_labels

LAYERS = 3


def with_modules(folder, depth: int = 1):
    """Save a tiny DeepSeek-V3 with further layers as its modules; return it, and a decoder layer for each module.

    The layer is that of transformers, with the weights of the folder; what is around it is written out in the test.
    """
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

    model = save("deepseek_v3", folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    layers = []
    for index in range(LAYERS, LAYERS + depth):
        layer, width = DeepseekV3DecoderLayer(model.config, index).eval(), model.config.hidden_size
        own = {"enorm": (width,), "hnorm": (width,), "shared_head.norm": (width,), "eh_proj": (width, 2 * width)}
        shapes = {f"{name}.weight": shape for name, shape in own.items()}
        shapes |= {name: tensor.shape for name, tensor in layer.state_dict().items()}
        made = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
        layer.load_state_dict(
            {name: tensor for name, tensor in made.items() if name.split(".")[0] not in own_names(own)}
        )
        made |= {
            "embed_tokens.weight": model.model.embed_tokens.weight,
            "shared_head.head.weight": model.lm_head.weight,
        }
        tensors |= {f"model.layers.{index}.{name}": tensor.detach().clone() for name, tensor in made.items()}
        layers.append((layer, made))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "num_nextn_predict_layers": depth}))
    return model, layers


def own_names(own: dict) -> set[str]:
    return {name.split(".")[0] for name in own}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(5))


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def expected_loss(theirs, layers, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The mean over modules of their summed cross-entropies."""
    length = tokens_BT.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    hidden, losses = theirs.model(tokens_BT).last_hidden_state, []
    position_ids = torch.arange(length)[None]
    for ahead, (layer, made) in enumerate(layers, start=1):
        embedded = theirs.model.embed_tokens(tokens_BT.roll(-ahead, 1))
        both = torch.cat([rms(embedded, made["enorm.weight"]), rms(hidden, made["hnorm.weight"])], -1)
        turned = theirs.model.rotary_emb(hidden, position_ids)
        out = layer(
            both @ made["eh_proj.weight"].T, attention_mask=mask, position_ids=position_ids, position_embeddings=turned
        )
        hidden = rms(out[0] if isinstance(out, tuple) else out, made["shared_head.norm.weight"])
        targets = further_labels(tokens_BT.roll(-1, 1), ahead, None)
        logits = theirs.lm_head(hidden).flatten(0, 1)
        losses.append(torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum"))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("depth", [1, 2])
def test_modules_are_read_and_written(tmp_path, depth):
    torch.set_num_threads(1)
    theirs, layers = with_modules(tmp_path / "theirs", depth)
    imported = import_folder(tmp_path / "theirs", tmp_path / "run")
    assert imported.model.multi_token.depth == depth
    assert not [note for note in imported.notes if "multi_token" in note]
    ours, tokens_BT = zoo.load(tmp_path / "run"), tokens(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens_BT), theirs(tokens_BT).logits, rtol=1e-5, atol=1e-5)
        ours.train()
        ours.loss(tokens_BT, tokens_BT.roll(-1, 1))
        found = ours.after_batch()["multi_token_loss"]
        targets = sum(2 * (20 - 1 - k) for k in range(depth))
        torch.testing.assert_close(found * targets / depth, expected_loss(theirs, layers, tokens_BT), rtol=1e-5, atol=0)
    export(tmp_path / "run", tmp_path / "back", family="deepseek_v3")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["num_nextn_predict_layers"] == depth


def test_the_module_of_qwen3_next(tmp_path):
    """It is a full layer, whatever the last layer is; norms keep their scales less 1."""
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextDecoderLayer

    torch.set_num_threads(1)
    theirs = save("qwen3_next", tmp_path / "theirs")
    path, generator = tmp_path / "theirs" / "model.safetensors", torch.Generator().manual_seed(1)
    layer, width = Qwen3NextDecoderLayer(theirs.config, 3).eval(), theirs.config.hidden_size
    shapes = {f"layers.0.{name}": tensor.shape for name, tensor in layer.state_dict().items()}
    names = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    shapes |= {"fc.weight": (width, 2 * width), **{f"{name}.weight": (width,) for name in names}}
    made = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    prefix = "layers.0."
    layer.load_state_dict({n.removeprefix(prefix): t for n, t in made.items() if n.startswith(prefix)})
    save_file(load_file(path) | {f"mtp.{n}": t for n, t in made.items()}, path, metadata={"format": "pt"})

    imported = import_folder(tmp_path / "theirs", tmp_path / "run")
    assert imported.model.multi_token_layers()[0].kind == "full"
    ours, tokens_BT = zoo.load(tmp_path / "run"), tokens(2, 20)
    with torch.no_grad():
        ours.train()
        ours.loss(tokens_BT, torch.cat([tokens_BT[:, 1:], torch.full((2, 1), -100)], 1))
        found = ours.after_batch()["multi_token_loss"]
        norm = lambda x, name: rms(x, 1 + made[f"{name}.weight"], eps=theirs.config.rms_norm_eps)  # noqa: E731
        hidden = theirs.model(tokens_BT).last_hidden_state
        embedded = theirs.model.embed_tokens(tokens_BT.roll(-1, 1))
        both = torch.cat([norm(embedded, "pre_fc_norm_embedding"), norm(hidden, "pre_fc_norm_hidden")], -1)
        mask = torch.full((20, 20), float("-inf")).triu(1)[None, None]
        turned = theirs.model.rotary_emb(hidden, torch.arange(20)[None])
        out = layer(both @ made["fc.weight"].T, position_embeddings=turned, attention_mask=mask)
        logits = theirs.lm_head(norm(out, "norm"))[:, :-2].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, tokens_BT[:, 2:].flatten())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    export(tmp_path / "run", tmp_path / "back", family="qwen3_next")
    before, after = load_file(path), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7)


def test_a_folder_that_transformers_saved_again_has_no_modules(tmp_path):
    save("deepseek_v3", tmp_path / "theirs")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**written, "num_nextn_predict_layers": 1}))
    imported = import_folder(tmp_path / "theirs", tmp_path / "run")
    assert imported.model.multi_token is None
    assert "holds no tensors of the modules that predict further tokens" in " ".join(imported.notes)
    assert zoo.load(tmp_path / "run").config.multi_token is None


def test_an_embedding_of_their_own_is_refused(tmp_path):
    with_modules(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.3.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    why = r"model\.layers\.3\.embed_tokens\.weight differs from model\.embed_tokens\.weight, which it repeats"
    with pytest.raises(InteropError, match=why):
        import_folder(tmp_path / "theirs", tmp_path / "run")


def test_other_modules_than_the_last_layer_are_no_deepseek(tmp_path):
    from zoo.interop.architecture import write_config

    with_modules(tmp_path / "theirs")
    model = import_folder(tmp_path / "theirs", tmp_path / "run").model
    changed = model.model_copy(update={"multi_token": model.multi_token.model_copy(update={"ffn": "dense"})})
    with pytest.raises(InteropError, match=r"cannot have this model: multi_token\[0\]\.ffn"):
        write_config("deepseek_v3", changed)


def test_a_family_without_modules_leaves_them_out(tmp_path):
    from zoo.interop.importing import recipe_of, write_run

    save("llama", tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "plain")
    model = zoo.load(tmp_path / "plain").config
    config = type(model).model_validate({**model.model_dump(), "multi_token": {}})
    (tmp_path / "run").mkdir()
    decoder = zoo.build_model(config)
    write_run(tmp_path / "run", recipe_of(tmp_path / "run", config, "a test", None), decoder.state_dict(), None)
    said = export_command(tmp_path / "run", tmp_path / "out", "hf", "fp32", "llama")
    assert "left out:  the modules of model.multi_token, which llama does not have" in said
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "layers.3" in name]
