"""Models that read images: the text model is imported, with the logits of the whole model for text."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
from tests.zoo.interop.models import GEMMA, LLAMA4, SIZES, make
from zoo.cli import run as zoo_command
from zoo.interop.errors import InteropError
from zoo.interop.importing import import_folder

TEXT = {key: value for key, value in SIZES.items() if not key.endswith("token_id")} | {"pad_token_id": 0}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
VISION |= {"patch_size": 4, "projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16}
CASES = {
    "Gemma3": {**GEMMA, "num_hidden_layers": 4, "sliding_window_pattern": 2},
    "Llama4": {**LLAMA4, "tie_word_embeddings": False},
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def save(family, folder):
    text, vision = {**TEXT, **CASES[family]}, dict(VISION)
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision)
    model = make(config, family, "ForConditionalGeneration")
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def of(family):
        if family not in made:
            folder = tmp_path_factory.mktemp("model") / "theirs"
            made[family] = save(family, folder), folder
        return made[family]

    return of


def equal_logits(theirs, run):
    ours, tokens_BT = zoo.load(run), torch.randint(2, 61, (2, 20), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens_BT), theirs(input_ids=tokens_BT).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", CASES)
def test_the_text_model_is_imported(saved, tmp_path, family, capsys):
    theirs, folder = saved(family)
    assert zoo_command(["import", str(folder), str(tmp_path / "run")]) == 0
    assert f"reads images as well: only its text model ({family.lower()}_text) is imported" in capsys.readouterr().err
    equal_logits(theirs, tmp_path / "run")


@pytest.mark.parametrize("family", CASES)
def test_names_of_either_release_of_transformers(saved, tmp_path, family):
    theirs, folder = saved(family)
    state = load_file(folder / "model.safetensors")
    old = {name for name in state if name.startswith("language_model.model.")}
    assert old
    renamed = {name.replace("language_model.model.", "model.language_model."): x for name, x in state.items()}
    renamed = {name.replace("language_model.lm_head", "lm_head"): tensor for name, tensor in renamed.items()}
    (tmp_path / "new").mkdir()
    save_file(renamed, tmp_path / "new" / "model.safetensors")
    (tmp_path / "new" / "config.json").write_bytes((folder / "config.json").read_bytes())
    import_folder(tmp_path / "new", tmp_path / "run")
    equal_logits(theirs, tmp_path / "run")


CHANGES = {
    "a key of the text model": (
        {"text_config.strange": 1},
        r"text_config.strange: not a key .* --ignore text_config\.str",
    ),
    "a key of the whole": ({"strange": 1}, "config.json: strange: not a key"),
    "quantised": ({"quantization_config": {}}, "quantization_config: the weights are quantised"),
    "no text": ({"text_config": None}, "text_config: must be a mapping; found nothing"),
    "another tying": (
        {"tie_word_embeddings": False},
        "tie_word_embeddings: must be true, because it is that of text_con",
    ),
    "another text model": ({"text_config.model_type": "strange"}, "unknown model_type 'strange'"),
    "code of its own": ({"auto_map": {}}, "auto_map: not a key"),
}


@pytest.mark.parametrize(("changes", "why"), CHANGES.values(), ids=CHANGES)
def test_what_may_change_the_text_model_is_refused(saved, tmp_path, changes, why):
    _, folder = saved("Gemma3")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        first, _, inside = path.partition(".")
        config[first] = {**config[first], inside: value} if inside else value
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InteropError, match=why):
        import_folder(tmp_path / "copy", tmp_path / "run")


def test_dropout_of_the_text_model_is_noted(saved, tmp_path):
    _, folder = saved("Gemma3")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.1
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    notes = import_folder(tmp_path / "copy", tmp_path / "run").notes
    assert (
        sum(note.startswith("attention_dropout is 0.1 in config.json: a recipe has no dropout") for note in notes) == 1
    )
