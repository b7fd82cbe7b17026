"""`zoo convert`: the run it writes, what it measures, and what it refuses."""

import shutil

import pytest
import torch

import zoo
from tests.zoo.interop.models import save
from zoo.cli import run as zoo_command
from zoo.data.stored import stored_rows
from zoo.data.tokenizers import Bytes
from zoo.errors import RecipeError
from zoo.interop.converting import convert
from zoo.interop.errors import InteropError
from zoo.interop.importing import import_folder, write_run
from zoo.model import build_model
from zoo.runs.weights import LoadError

RECIPE = """\
name: small
model:
  d_model: 32
  vocab_size: 264
  max_seq_len: 64
  ffn: {{kind: swiglu, d_ff: 32}}
  blocks:
    full: {{kind: full, n_heads: 4, n_kv_heads: 2}}
  layers: full*4
data:
  source: {{kind: text, paths: [{text}]}}
  validation_fraction: 0.4
  cache_dir: {cache}
train: {{duration: 2ba, batch_size: 2, workers: 0}}
"""
BLOCKS = """\
local: {kind: window, n_heads: 4, n_kv_heads: 2, window: 16}
ansa:
  {kind: ansa, n_heads: 4, n_kv_heads: 2, kv_rank: 32, rope_dim: 8, window: 16, n_selected: 3,
   compression_block: 8, compression_stride: 8, selection_block: 8}
"""


@pytest.fixture
def blocks(tmp_path):
    path = tmp_path / "blocks.yaml"
    path.write_text(BLOCKS)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it, but for the training: with data.json, so that its held-out rows are read."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("convert")
    (folder / "text").mkdir()
    for i in range(12):
        (folder / "text" / f"{i}.txt").write_text(f"the window of layer {i} and its latent. " * 12)
    (folder / "small.yaml").write_text(RECIPE.format(text=folder / "text", cache=folder / "cache"))
    recipe = zoo.load_recipe(folder / "small.yaml")
    (folder / "run").mkdir()
    generator = torch.Generator().manual_seed(1)
    drawn = build_model(recipe).state_dict().items()
    state = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in drawn}
    write_run(folder / "run", recipe, state, Bytes())
    (folder / "run" / "data.json").write_text("{}")
    return folder / "run"


def test_a_run_with_other_layers(run, blocks, tmp_path):
    made = convert(run, tmp_path / "new", "ansa local ...", blocks)
    assert [layer.after for layer in made.layers] == ["ansa.local", "local", "ansa.global", "local"]
    assert [layer.before for layer in made.layers] == ["full"] * 4
    assert all(0 < layer.error < 2 for layer in made.layers)
    assert made.measured_on.endswith(f"held-out rows of {run}")
    old, new = zoo.load(run), zoo.load(tmp_path / "new")
    recipe = zoo.load_recipe(tmp_path / "new" / "recipe.yaml")
    assert recipe.model == new.config
    assert recipe.train.init_from == str(tmp_path / "new")
    assert recipe.data == zoo.load_recipe(run / "recipe.yaml").data
    ansa = recipe.model.blocks["ansa"]
    assert (ansa.gate_bias, ansa.latent_norm) == (True, False)
    assert "full" not in recipe.model.blocks
    for name, tensor in old.state_dict().items():
        if ".attention." not in name or name.startswith("layers.1."):
            assert torch.equal(new.state_dict()[name], tensor), name
    assert new.layers[2].attention.gate.bias.unique().tolist() == [-4.0, 4.0]


def test_the_losses_are_those_of_the_held_out_rows(run, blocks, tmp_path):
    made = convert(run, tmp_path / "same", "full*4", blocks, rows=3)
    assert made.loss_before == made.loss_after
    assert [layer.error for layer in made.layers] == [0.0] * 4
    recipe = zoo.load_recipe(run / "recipe.yaml")
    prepared = zoo.data.prepare(recipe.data, max_seq_len=64, vocab_size=264, seed=recipe.seed)
    stored = list(stored_rows(prepared, "validation"))
    rows = stored[:: len(stored) // 3][:3]
    model = zoo.load(run)
    losses = [float(model.loss(torch.tensor(r.inputs)[None], torch.tensor(r.labels)[None]).detach()) for r in rows]
    assert made.loss_before == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_a_window_as_long_as_the_row_changes_nothing(run, tmp_path):
    path = tmp_path / "blocks.yaml"
    path.write_text("layers: wide*4\nblocks:\n  wide: {kind: window, n_heads: 4, n_kv_heads: 2, window: 64}\n")
    made = convert(run, tmp_path / "new", None, path)
    assert max(layer.error for layer in made.layers) < 1e-6
    assert made.loss_after == pytest.approx(made.loss_before, rel=1e-6)


def test_the_command_and_training_after_it(run, blocks, tmp_path, capsys):
    pytest.importorskip("composer")
    out = str(tmp_path / "out")
    assert zoo_command(["convert", str(run), out, "--layers", "(full local)*2", "--blocks", str(blocks)]) == 0
    said = capsys.readouterr().out
    assert "1  full  local" in said
    assert "loss " in said
    assert f"zoo train {out}/recipe.yaml --run-dir NEW" in said
    assert zoo_command(["generate", out, "--prompt", "the", "--max-tokens", "3"]) == 0
    assert zoo_command(["train", f"{out}/recipe.yaml", "--run-dir", str(tmp_path / "healed")]) == 0
    assert f"starts from the weights in {out}/model.safetensors" in capsys.readouterr().out


def test_an_imported_run_is_measured_on_random_tokens(tmp_path):
    save("llama, one key head, tied", tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "run")
    path = tmp_path / "mla.yaml"
    path.write_text("mla: {kind: mla, n_heads: 4, kv_rank: 16, rope_dim: 8}\n")
    made = convert(tmp_path / "run", tmp_path / "new", "mla*3", path)
    assert "random tokens" in made.measured_on
    assert made.loss_before is None
    assert max(layer.error for layer in made.layers) < 1e-5  # one key head: its rotary key is shared already
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        old, new = (zoo.load(tmp_path / name)(tokens) for name in ("run", "new"))
    torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


REFUSED = {
    "fewer layers": ("local*3", BLOCKS, r"--layers: .*3 layers"),
    "an unknown block": ("lcal*4", BLOCKS, r"--layers: unknown block 'lcal'; known: ansa, full, local. Did you mean"),
    "no schedule": (None, BLOCKS, r"--layers: give the schedule"),
    "not a schedule": ("local*", BLOCKS, r"--layers: "),
    "an unknown kind": ("a*4", "a: {kind: windwo}", r"blocks.a.kind: .*windwo"),
    "an unknown field": (
        "a*4",
        "a: {kind: window, windw: 3}",
        r"blocks.yaml:1:19: blocks.a.windw: unknown key 'windw'; known: .*Did you mean 'window'\?",
    ),
    "an unknown field of a part": (
        "a*4",
        "blocks:\n  a: {kind: attention, projection: {kind: gqa},\n    patterns: [{kind: dilated, window: 3}]}",
        r"^\S*blocks.yaml:3:32: blocks.a.patterns\[0\].window: unknown key 'window'; known: kind, n_keys, dilation",
    ),
    "a value out of bounds": (
        "local a a a",
        BLOCKS + "a: {kind: window, n_heads: 4, n_kv_heads: 3}",
        r"blocks.yaml:5:\d+: blocks.a.n_kv_heads: must divide n_heads \(4\); found 3",
    ),
    "norms that the old layer lacks": (
        "a*4",
        "a: {kind: full, n_heads: 4, n_kv_heads: 2, qk_norm: true}",
        r"layer 0: full to a: qk_norm: must be false, as before; found true",
    ),
    "no mapping": ("a*4", "a: 3", r"blocks.yaml: must be blocks by name"),
    "no mapping under blocks": ("a*4", "blocks: 5", r"blocks.yaml: must be blocks by name.* found 5"),
    "a list under blocks": ("a*4", "blocks: [kind]", r"blocks.yaml: must be blocks by name"),
    "a schedule of another kind": (None, "layers: 5\nblocks: {a: {kind: full}}", r"--layers: "),
    "another key": ("a*4", "blocks: {a: {kind: full}}\nmodel: 3", r"blocks.yaml: unknown key 'model'"),
    "other heads": (
        "a*4",
        "a: {kind: full, n_heads: 2}",
        r"layer 0: full to a: n_heads: must be 4, as before; found 2",
    ),
    "a part that is not there": ("local.x*4", BLOCKS, r"^--layers: block 'local' \(window\) has no parts"),
}


@pytest.mark.parametrize(("layers", "text", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(run, tmp_path, layers, text, why):
    path = tmp_path / "blocks.yaml"
    path.write_text(text)
    with pytest.raises((InteropError, RecipeError), match=why):
        convert(run, tmp_path / "new", layers, path)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_a_model_alone(run, tmp_path):
    """model.yaml and weights, as one gives them to somebody else: the tokenizer is the one that model.yaml names."""
    (tmp_path / "alone").mkdir()
    for name in ("model.yaml", "model.safetensors"):
        (tmp_path / "alone" / name).write_bytes((run / name).read_bytes())
    convert(tmp_path / "alone", tmp_path / "new", "full*4")
    assert zoo.load_tokenizer(tmp_path / "new").identity == "byte"
    assert zoo.load_recipe(tmp_path / "new" / "recipe.yaml").data.tokenizer.kind == "byte"


def test_a_trained_run_without_its_recipe_is_refused(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "recipe.yaml").unlink()
    with pytest.raises(InteropError, match=r"recipe\.yaml: no such file, but the folder holds data\.json of a run"):
        convert(copy, tmp_path / "new", "full*4")
    assert not (tmp_path / "new").exists()


def test_a_trained_run_without_its_record_is_measured_on_its_held_out_rows(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "data.json").unlink()
    (copy / "metrics.jsonl").touch()
    assert convert(copy, tmp_path / "new", "full*4").measured_on == f"16 held-out rows of {copy}"


def test_folders_that_are_not_there(run, tmp_path, capsys):
    assert zoo_command(["convert", str(run), str(tmp_path / "new"), "--blocks", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    with pytest.raises(LoadError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "new", "full*4")
    with pytest.raises(InteropError, match="not empty"):
        convert(run, run, "full*4")
