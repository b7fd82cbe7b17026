"""`train.init_from`: a new run starts from another run's weights; what does not fit is refused tensor by tensor."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.errors import RecipeError
from zoo.files import sha256
from zoo.model import build_model
from zoo.recipe import ModelConfig
from zoo.training import engine, train
from zoo.training.continuing import with_absolute_paths
from zoo.training.initial import Initial

pytest.importorskip("composer")
pytestmark = pytest.mark.filterwarnings("ignore:.*leaked shared_memory:UserWarning")
SHORT = "train.duration=2ba"
BPE = ("model.vocab_size=300", "data.tokenizer={kind: bpe, vocab_size: 300}")


@pytest.fixture(scope="module")
def source(recipe_file, tmp_path_factory):
    """A complete run of two batches."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("source") / "run"
    train(zoo.load_recipe(recipe_file, [SHORT]), run)
    return run


@pytest.fixture
def other_text(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"quite other words {i} " * 40)
    return f"data.source={{kind: text, paths: [{folder}]}}"


def from_(run):
    return f"train.init_from={run}"


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_resolved_recipe_has_the_path_of_the_weights_from_the_root_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = with_absolute_paths(zoo.load_recipe("zoo:tiny/full", from_("runs/first")))
    assert resolved.train.init_from == str(tmp_path / "runs/first")
    assert with_absolute_paths(resolved) == resolved
    assert with_absolute_paths(zoo.load_recipe("zoo:tiny/full", from_("~/first"))).train.init_from == "~/first"
    assert with_absolute_paths(zoo.load_recipe("zoo:tiny/full")).train.init_from is None


def test_a_run_goes_on_from_the_weights_with_other_data_and_context(recipe, source, other_text, tmp_path, capsys):
    made = recipe(
        from_(source), other_text, SHORT, "model.max_seq_len=64", "model.blocks.ansa.rope_theta=5e4", "seed=9"
    )
    summary = train(made, tmp_path / "new")
    said = capsys.readouterr().out
    assert f"starts from the weights in {source / 'model.safetensors'}" in said
    assert f"model.max_seq_len was 32 in {source}, and is 64 here" in said
    assert "rope_theta was 10000.0" in said
    digest = sha256(source / "model.safetensors")
    assert summary.init_from == {"source": str(source), "sha256": digest}
    for name in ("summary.json", "data.json"):
        assert json.loads((tmp_path / "new" / name).read_text())["init_from"]["sha256"] == digest
    assert zoo.load(tmp_path / "new").config.max_seq_len == 64


def test_the_first_validation_is_that_of_the_weights(recipe, source, tmp_path):
    made = recipe(from_(source), SHORT, "seed=9")
    train(made, tmp_path / "new")
    expected = metrics(source)[-1]["validation_loss"]
    assert metrics(tmp_path / "new")[0]["validation_loss"] == pytest.approx(expected, rel=1e-6)


def test_the_weights_of_an_unfinished_run_are_those_of_its_newest_checkpoint(recipe, source, tmp_path):
    unfinished = shutil.copytree(source, tmp_path / "unfinished")
    for name in ("summary.json", "model.safetensors", "model.yaml"):
        (unfinished / name).unlink()
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    summary = train(recipe(from_(unfinished), SHORT), tmp_path / "new")
    newest = max(unfinished.glob("checkpoints/*.pt"))
    assert summary.init_from["sha256"] == sha256(newest)
    assert metrics(tmp_path / "new")[0]["validation_loss"] == pytest.approx(metrics(source)[-1]["validation_loss"])
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_resume_does_not_read_the_weights_again_but_notices_another_key(recipe, source, tmp_path):
    copy, run = shutil.copytree(source, tmp_path / "copy"), tmp_path / "new"
    train(recipe(from_(copy), SHORT), run)
    digest = sha256(copy / "model.safetensors")
    shutil.rmtree(copy)
    longer = train(recipe(from_(copy), "train.duration=4ba"), run)
    assert longer.batches == 4
    assert longer.init_from["sha256"] == digest
    for other in (from_(source), "seed=3"):
        with pytest.raises(RecipeError, match=r"train\.init_from: was '.*copy' when"):
            train(recipe(other, "train.duration=5ba"), run)


@pytest.mark.slow
def test_frozen_parameters_stay_and_a_resume_ends_with_the_same_weights(recipe, source, tmp_path):
    keys = (
        from_(source),
        "train.freeze=[embedding, layers.0]",
        "train.optimizer={lr: 0.01, lr_multipliers: {layers.1.feed_forward: 0.1}}",
        "train.schedule={kind: linear, warmup: 0ba, final_lr_ratio: 1.0}",
    )
    once = train(recipe(*keys, "train.duration=4ba", "train.checkpoint.every=2ba"), tmp_path / "once")
    twice = tmp_path / "twice"
    train(recipe(*keys, "train.duration=2ba"), twice)
    assert train(recipe(*keys, "train.duration=4ba"), twice).sha256 == once.sha256
    before, after = (load_file(run / "model.safetensors") for run in (source, twice))
    for name, tensor in after.items():
        frozen = name.startswith(("embedding.", "layers.0."))
        assert torch.equal(tensor, before[name]) == frozen, name


def test_parameters_are_frozen_before_the_engine_wraps_the_model(recipe, tmp_path, monkeypatch):
    """DistributedDataParallel and FSDP2 take over parameters as they are when they wrap: a later freeze is too late."""
    seen = {}

    class Recording(engine.StepTrainer):
        def __init__(self, *, model, **others):
            seen.update({name: parameter.requires_grad for name, parameter in model.named_parameters()})
            super().__init__(model=model, **others)

    monkeypatch.setattr(engine, "StepTrainer", Recording)
    train(recipe("train.freeze=[embedding, layers.0]", SHORT), tmp_path / "new")
    frozen = {name for name, requires_grad in seen.items() if not requires_grad}
    assert frozen
    assert frozen == {name for name in seen if "embedding." in name or "layers.0." in name}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["model.layers=ansa*3"], r"layers\.2\.attention\.output\.weight is missing"),
        (["model.ffn.d_ff=48"], r"layers\.1\.feed_forward\.up\.weight is \[32, 16\], the model has \[48, 16\]"),
        (["model.tie_embeddings=false"], r"head\.weight is missing, the model has it with \[264, 16\]"),
        (["model.layers=ansa*1"], r"layers\.1\.\S+ is not part of the model"),
    ],
)
def test_every_tensor_that_does_not_fit_is_named(recipe, source, tmp_path, settings, why):
    with pytest.raises(RecipeError, match=rf"train\.init_from: {why}(.|\n)*not the weights of this model"):
        train(recipe(from_(source), SHORT, *settings), tmp_path / "new")
    assert not (tmp_path / "new" / "recipe.yaml").exists()


def test_equal_shapes_of_other_heads_are_refused(recipe, tmp_path):
    blocks = "model.blocks={{a: {{kind: full, n_heads: {}, n_kv_heads: {}, head_dim: {}}}}}"
    train(recipe(blocks.format(2, 2, 8), "model.layers=a*2", SHORT), tmp_path / "first")
    with pytest.raises(RecipeError, match=r"model\.blocks\.a: n_heads is 4; the weights are of 2"):
        train(recipe(from_(tmp_path / "first"), blocks.format(4, 4, 4), "model.layers=a*2", SHORT), tmp_path / "new")


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (
            {"kind": "gated_deltanet", "n_heads": 4, "n_key_heads": 2, "head_dim": 8, "v_head_dim": 8},
            {"kind": "gated_deltanet", "n_heads": 4, "n_key_heads": 4, "head_dim": 4, "v_head_dim": 8},
            "n_key_heads is 4; the weights are of 2",
        ),
        (
            {"kind": "mamba2", "n_heads": 4, "n_groups": 1, "state_dim": 8, "v_head_dim": 8},
            {"kind": "mamba2", "n_heads": 4, "n_groups": 2, "state_dim": 4, "v_head_dim": 8},
            "n_groups is 2; the weights are of 1",
        ),
        (
            {"kind": "gated_linear", "n_heads": 2, "head_dim": 8, "v_head_dim": 8},
            {"kind": "gated_linear", "n_heads": 2, "head_dim": 8, "v_head_dim": 8, "decay_temperature": 4.0},
            None,
        ),
        (  # the default, written out
            {"kind": "gated_deltanet", "n_heads": 4, "head_dim": 8, "v_head_dim": 8},
            {"kind": "gated_deltanet", "n_heads": 4, "n_key_heads": 4, "head_dim": 8, "v_head_dim": 8},
            None,
        ),
    ],
)
def test_equal_shapes_of_other_states_are_refused(first, second, why):
    """What has no weights, such as a temperature, may differ."""
    sizes = {"d_model": 16, "vocab_size": 40, "max_seq_len": 32, "ffn": {"kind": "swiglu", "d_ff": 32}}
    of, to = (ModelConfig.model_validate({**sizes, "blocks": {"a": block}, "layers": "a"}) for block in (first, second))
    shapes = {name: list(x.shape) for name, x in build_model(of, device="meta").state_dict().items()}
    initial = Initial("runs/first", Path("model.safetensors"), of, None, "", shapes)
    if why is None:
        initial.check_model(to)
        return
    with pytest.raises(RecipeError, match=rf"train\.init_from: model\.blocks\.a: {why}"):
        initial.check_model(to)


@pytest.mark.slow
def test_another_tokenizer_is_refused_and_that_of_the_run_is_named(recipe, tmp_path, other_text):
    first = tmp_path / "first"
    train(recipe(*BPE, SHORT), first)
    with pytest.raises(RecipeError, match=r"data\.tokenizer: not the tokenizer of the weights(.|\n)*other vocabulary"):
        train(recipe(*BPE, SHORT, other_text, from_(first)), tmp_path / "new")
    own = f"data.tokenizer={{kind: huggingface, path: {first}}}"
    assert train(recipe(BPE[0], own, SHORT, other_text, from_(first)), tmp_path / "new").batches == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda run: (run / "model.safetensors").unlink(), "no such file"),
        (lambda run: (run / "model.safetensors").write_bytes(b"12345678"), "damaged"),
        (lambda run: (run / "model.yaml").unlink(), "model.yaml: no such file"),
        (lambda run: shutil.rmtree(run), "no such folder"),
    ],
)
def test_a_folder_without_whole_weights_is_refused(recipe, source, tmp_path, change, why):
    copy = shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    (copy / "summary.json").unlink()
    change(copy)
    with pytest.raises(RecipeError, match=rf"train\.init_from: .*{why}"):
        train(recipe(from_(copy), SHORT), tmp_path / "new")


def test_a_flipped_bit_is_refused(recipe, source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(RecipeError, match=r"train\.init_from: .*damaged: SHA-256 is"):
        train(recipe(from_(copy), SHORT), tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\0b", "a NUL character cannot be in one"),
        ("~no-such-user/run", "no such user's home folder"),
        ("x" * 4000, "File name too long"),
        ("/dev/null", "/dev/null: no such folder"),
    ],
)
def test_a_name_of_no_folder_is_one_line(tmp_path, name, why):
    with pytest.raises(RecipeError, match=f"train.init_from: .*{why}") as caught:
        Initial.find(name, tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_of_transformers_and_the_run_itself_are_refused(recipe, source, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"zoo import .* makes a run folder of it"):
        train(recipe(from_(tmp_path), SHORT), tmp_path / "new")
    with pytest.raises(RecipeError, match="the folder of this run itself"):
        train(recipe(from_(tmp_path / "own"), SHORT), tmp_path / "own")


def test_refusals_of_a_resume_name_the_way_on(recipe, source, tmp_path, other_text):
    run = shutil.copytree(source, tmp_path / "run")
    for settings in ([other_text], ["seed=4"]):
        with pytest.raises(RecipeError, match=rf"another --run-dir, with --set train\.init_from={run}"):
            train(recipe(*settings, "train.duration=3ba"), run)
