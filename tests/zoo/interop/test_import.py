"""`zoo import`: the run works with every command; a folder that is damaged or hostile is refused in one line."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.zoo.interop.models import save
from zoo.cli import run as zoo_command
from zoo.export.tokenizer_files import bytes_as_subwords
from zoo.interop.architecture import facts, read_config
from zoo.interop.errors import InteropError
from zoo.interop.importing import import_folder
from zoo.interop.keys import DROPOUTS, INERT

WORDS = {"vocab_size": 300}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of a Llama that reads bytes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("source") / "llama"
    save("llama", folder, keys=WORDS)
    bytes_as_subwords().save(folder)
    return folder


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_every_command_takes_the_run(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a window, a latent, a block. " * 400)
    assert zoo_command(["import", str(source), "runs/llama"]) == 0
    said = capsys.readouterr().out
    assert "zoo train runs/llama/recipe.yaml" in said
    assert zoo_command(["show", "runs/llama/recipe.yaml"]) == 0
    kept = zoo.load_recipe("runs/llama/recipe.yaml")
    assert kept.train.init_from == str(tmp_path / "runs/llama")  # in any working directory
    assert "3 layers  A A A" in capsys.readouterr().out
    assert zoo_command(["generate", "runs/llama", "--prompt", "a b", "--max-tokens", "4", "--temperature", "0"]) == 0
    assert zoo_command(["eval", "runs/llama", "--tasks", "mqar", "--seq-len", "64", "--rows", "2"]) == 0
    assert zoo_command(["export", "runs/llama", "exported"]) == 0
    assert (tmp_path / "exported" / "config.json").is_file()


def test_training_starts_from_the_imported_weights(source, tmp_path, monkeypatch, capsys):
    pytest.importorskip("composer")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a window, a latent, a block. " * 400)
    import_folder(source, "runs/llama")
    settings = ["data.source={kind: text, paths: [text.txt]}", "train.duration=1ba", "train.batch_size=1"]
    settings += ["data.seq_len=32", "data.validation_fraction=0", "train.workers=0"]
    sets = [part for setting in settings for part in ("--set", setting)]
    assert zoo_command(["train", "runs/llama/recipe.yaml", "--run-dir", "new", *sets]) == 0
    assert f"starts from the weights in {tmp_path / 'runs/llama/model.safetensors'}" in capsys.readouterr().out
    assert zoo_command(["train", "runs/llama/recipe.yaml", "--run-dir", "runs/llama", *sets]) == 2
    assert "runs/llama" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_makes_a_run_of_numbers(source, copy, tmp_path, capsys):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.model").write_text("")
    assert zoo_command(["import", str(copy), str(tmp_path / "run")]) == 0
    assert "note: " in (said := capsys.readouterr().err)
    assert "has no tokenizer.json: the run takes token numbers only, no text; AutoTokenizer" in said
    assert zoo.generate(zoo.load(tmp_path / "run"), [[1, 2]], max_tokens=2).results
    assert zoo.load_recipe(tmp_path / "run" / "recipe.yaml").model.vocab_size == 300


def test_the_end_of_a_document(source, copy, tmp_path):
    """As tokenizer_config.json says, else by the number in config.json, else as the user says."""
    (copy / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InteropError, match=r"does not say which token ends a document; name with --end-of-document"):
        import_folder(copy, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    import_folder(copy, tmp_path / "named", end_of_document="a")
    assert zoo.load_tokenizer(tmp_path / "named").end_of_document == 97
    change_config(copy, eos_token_id=[98, 97])
    import_folder(copy, tmp_path / "numbered")
    assert zoo.load_tokenizer(tmp_path / "numbered").end_of_document == 98


def test_names_of_runs_become_names_of_recipes(source, tmp_path):
    import_folder(source, tmp_path / "_a run, mine!")
    assert zoo.load_recipe(tmp_path / "_a run, mine!" / "recipe.yaml").name == "a-run-mine-"


KEYS = {
    "a key of another family": ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping: not a key that a recipe"),
    "two keys": ({"one": 1, "rms_norm_epsilon": 1}, r"one: not a key(.|\n)*Did you mean 'rms_norm_eps'\?"),
    "quantised": ({"quantization_config": {}}, "quantization_config: the weights are quantised"),
    "code of its own": ({"auto_map": {"AutoModel": "m.M"}}, "auto_map: the model brings code.*give --ignore auto_map"),
    "another class": ({"architectures": ["LlamaForSequenceClassification"]}, "architectures: must be LlamaForCausalLM"),
    "an unknown family": ({"model_type": "mixtrall"}, "unknown model_type 'mixtrall'; known: .*llama"),
    "no family": ({"model_type": ["llama"]}, "unknown model_type a list"),
    "positions of several axes": ({"use_mrope": True}, "use_mrope: must be false.*; found true"),
    "an activation": ({"hidden_act": "relu"}, "hidden_act: must be silu.*; found 'relu'"),
    "a scaling": ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type: must be default, linear"),
    "a key of a scaling": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "shift": 1}},
        "rope_scaling.shift: not a key .*give --ignore rope_scaling.shift",
    ),
    "a scaling out of bounds": (
        {"rope_scaling": {"rope_type": "linear", "factor": -2.0}},
        "rope_scaling.factor: .* found -2.0",
    ),
    "two types of scaling": (
        {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
        "rope_type and type must be the same",
    ),
    "a scaling that is text": ({"rope_scaling": "yarn"}, "rope_scaling: must be a mapping; found 'yarn'"),
    "a scaling's type that is a list": (
        {"rope_scaling": {"rope_type": []}},
        "rope_scaling.rope_type: must be default, ",
    ),
    "a scaling's factor of 400 digits": (
        {"rope_scaling": {"rope_type": "linear", "factor": 10**400}},
        "rope_scaling.factor: .* found 1000",
    ),
    "a number of 400 digits": ({"rms_norm_eps": 10**400}, "rms_norm_eps: is too large; found 1000"),
    "a base of 400 digits": ({"rope_theta": -(10**400)}, "rope_theta: is too large; found -1000"),
    "interleaved rotation": ({"rope_interleaved": True}, "rope_interleaved: must be false"),
    "text for a number": ({"hidden_size": "32"}, "hidden_size: must be an integer of 1 to .*; found '32'"),
    "true for a number": ({"num_attention_heads": True}, "num_attention_heads: must be an integer"),
    "zero layers": ({"num_hidden_layers": 0}, "num_hidden_layers: must be an integer of 1 to"),
    "too many layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers: must be an integer of 1 to"),
    "a huge width": ({"hidden_size": 2**31 - 1}, "describes a model of .* its safetensors files hold"),
    "a huge vocabulary": ({"vocab_size": 2**31 - 1}, "describes a model of .* its safetensors files hold"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "no recipe can have this model: model.blocks.full.n_kv_h"),
    "epsilon": ({"rms_norm_eps": -1.0}, "no recipe can have this model: model.norm_eps"),
    "a flag of text": ({"tie_word_embeddings": "no"}, "tie_word_embeddings: must be true or false; found 'no'"),
    "another shape": (
        {"intermediate_size": 40},
        r"mlp.gate_proj.weight is \[48, 32\]; config.json makes it \[40, 32\]",
    ),
    "fewer layers": ({"num_hidden_layers": 2}, "not part of the model that config.json describes: model.layers.2"),
    "biases": ({"attention_bias": True}, "q_proj.bias, model.*k_proj.bias, model.*v_proj.bias is missing"),
    "a tied head of its own": ({"tie_word_embeddings": True}, "lm_head.weight differs from the embedding"),
    "a small vocabulary": ({"vocab_size": 200}, r"embed_tokens.weight is \[300, 32\]"),
}


@pytest.mark.parametrize(("keys", "why"), KEYS.values(), ids=KEYS)
def test_what_a_recipe_cannot_express_is_refused_by_name(copy, tmp_path, keys, why):
    change_config(copy, **keys)
    with pytest.raises(InteropError, match=why):
        import_folder(copy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_is_named_and_not_passed_over(copy, tmp_path):
    """Each key that `zoo import` reads, with its last letter doubled; what says nothing of the logits may be."""
    path = copy / "config.json"
    keys = json.loads(path.read_text())
    read = [key for key in keys if key not in (*INERT, *DROPOUTS)]
    assert len(read) > 12
    for key in read:
        path.write_text(json.dumps({key + key[-1] if name == key else name: value for name, value in keys.items()}))
        with pytest.raises(InteropError, match=f"{key}{key[-1]}|{key}: is missing"):
            import_folder(copy, tmp_path / "run")


def test_two_tokens_of_one_number(copy, tmp_path, capsys):
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    first, second = list(content["model"]["vocab"])[40:42]
    content["model"]["vocab"][first] += 1
    path.write_text(json.dumps(content))
    number = content["model"]["vocab"][second]
    why = rf"tokenizer\.json: model\.vocab: the tokens .* and .* have the same number {number}; the file is damaged"
    with pytest.raises(InteropError, match=why):
        import_folder(copy, tmp_path / "run")
    (tmp_path / "text.txt").write_text("a window")
    (tmp_path / "d.yaml").write_text(f"data: {{source: {{kind: text, paths: [{tmp_path}/text.txt]}}}}\n")
    assert zoo_command(["eval", str(copy), "--data", str(tmp_path / "d.yaml")]) == 2
    assert f"have the same number {number}" in capsys.readouterr().err


def test_a_key_can_be_ignored_by_name(copy, tmp_path, capsys):
    change_config(copy, some_note="x")
    assert zoo_command(["import", str(copy), str(tmp_path / "run")]) == 2
    assert "give --ignore some_note" in capsys.readouterr().err
    assert zoo_command(["import", str(copy), str(tmp_path / "run"), "--ignore", "some_note"]) == 0
    assert zoo_command(["import", str(copy), str(tmp_path / "other"), "--ignore", "sum_note"]) == 2
    assert "--ignore sum_note" in capsys.readouterr().err


IGNORED = {
    "of the model": {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
    "of a mapping": {"rope_scaling.shift": 1},
    "of every family": {"use_mrope": True},
    "of this family": {"mlp_bias": "text"},
    "code": {"auto_map": {"AutoModel": "m.M"}},
}


@pytest.mark.parametrize("keys", IGNORED.values(), ids=IGNORED)
def test_an_ignored_key_is_as_if_it_were_not_written(source, copy, tmp_path, keys):
    """Also one that is refused for its value, and one inside a mapping."""
    ((name, value),) = keys.items()
    first, _, inside = name.partition(".")
    change_config(copy, **{first: {"rope_type": "linear", "factor": 1.0, inside: value} if inside else value})
    with pytest.raises(InteropError, match=first):
        import_folder(copy, tmp_path / "run")
    found = import_folder(copy, tmp_path / "run", ignored=[name]).model
    before = read_config(json.loads((source / "config.json").read_text()), "config.json")[1]
    scaling = found.expanded()[0].mixer.attention.projection.position.scaling
    assert (scaling is not None) == bool(inside)
    if not inside:
        assert facts(found) == facts(before)


def test_dropout_of_a_training_is_noted(copy, tmp_path, capsys):
    change_config(copy, attention_dropout=0.1, resid_pdrop=0.0)
    assert zoo_command(["import", str(copy), str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "note: attention_dropout is 0.1 in config.json: a recipe has no dropout" in said
    assert "resid_pdrop" not in said


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def other_tensors(change):
    def do(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return do


def shards(weight_map):
    """An index in place of the one file."""

    def do(folder):
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return do


def fifo(name):
    def do(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return do


def set_nan(state):
    state["model.norm.weight"][3] = float("nan")


def to_integers(state):
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)


FOLDERS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    "no JSON": (write("config.json", b"{"), "config.json: damaged, not JSON"),
    "deep JSON": (write("config.json", b"[" * 100_000), "config.json: damaged"),
    "a list": (write("config.json", b"[]"), "config.json: damaged, must be a JSON object"),
    "infinity": (write("config.json", b'{"model_type": "llama", "rope_theta": 1e999}'), "too large"),
    "a large config": (write("config.json", b" " * (5 << 20)), "config.json: too large"),
    "config is a FIFO": (fifo("config.json"), "config.json: must be a file; found a FIFO"),
    "weights are a FIFO": (fifo("model.safetensors"), "model.safetensors: must be a file; found a FIFO"),
    "tokenizer is a FIFO": (fifo("tokenizer.json"), "tokenizer.json: must be a file; found a FIFO"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin is a pickle, which can run code and is not read",
    ),
    "half of the weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        "model.safetensors: damaged, or not a safetensors file",
    ),
    "not safetensors": (write("model.safetensors", b"x" * 200), "model.safetensors: damaged, or not"),
    "NaN": (other_tensors(set_nan), "model.norm.weight holds NaN or infinity"),
    "integers": (other_tensors(to_integers), "model.norm.weight is I8; it must be F32, BF16, F16"),
    "a tensor is missing": (
        other_tensors(lambda state: state.pop("model.norm.weight")),
        "model.norm.weight is missing",
    ),
    "a tensor of its own": (
        other_tensors(lambda state: state.update(extra=torch.zeros(2))),
        "not part of the model that config.json describes: extra",
    ),
    "an index of nothing": (shards({}), "weight_map: must say of each tensor"),
    "an index that leads out": (shards({"lm_head.weight": "../a.safetensors"}), "must be a path inside"),
    "an index of a pickle": (shards({"lm_head.weight": "a.bin"}), "weight_map: must name .safetensors files"),
    "an index of lists": (shards({"lm_head.weight": []}), "weight_map: must be the name of a file"),
    "an index of a missing file": (shards({"lm_head.weight": "b.safetensors"}), "b.safetensors: no such file"),
    "an index of one tensor": (shards({"lm_head.weight": "a.safetensors"}), "a.safetensors holds this tensor; it does"),
    "a damaged tokenizer": (write("tokenizer.json", b"{}"), "not a tokenizer.json"),
    "an old rotary table": (
        other_tensors(lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})),
        None,
    ),
}


@pytest.mark.parametrize(("change", "why"), FOLDERS.values(), ids=FOLDERS)
def test_a_damaged_or_hostile_folder(copy, tmp_path, change, why, capsys):
    change(copy)
    run = tmp_path / "run"
    code = zoo_command(["import", str(copy), str(run)])
    said = capsys.readouterr().err
    if why is None:
        assert (code, said) == (0, "")
        return
    assert code == 2
    assert why in said
    assert "Traceback" not in said
    assert not run.exists()


def test_nothing_is_written_over_or_through_a_link(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for run, why in (("full", "not empty"), ("link", "a symbolic link"), ("full/mine", "a file"), ("full/mine/x", "")):
        with pytest.raises(InteropError, match=rf"{run}.*{why}"):
            import_folder(source, tmp_path / run)
    with pytest.raises(InteropError, match="not empty"):
        import_folder(source, source)
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "full" / "mine").read_text() == "mine"


def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    def fails(*arguments):
        (tmp_path / "run" / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo.training.final_weights.export", fails)
    with pytest.raises(InteropError, match=r"run: cannot be written: No space left on device"):
        import_folder(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nowhere", "x\0y", "a" * 5000])
def test_no_folder(tmp_path, name):
    with pytest.raises(InteropError, match=r"no such folder|cannot be read"):
        import_folder(name, tmp_path / "run")


def test_a_name_that_no_folder_can_have(source):
    with pytest.raises(InteropError, match="a NUL character cannot be in one"):
        import_folder(source, "x\0y")


def test_a_run_folder_is_named_as_one(source, tmp_path):
    import_folder(source, tmp_path / "run")
    with pytest.raises(InteropError, match="It is a run folder already"):
        import_folder(tmp_path / "run", tmp_path / "other")
