"""What a run is refused for, or told of, when it goes on or is asked for again: data, tokenizer, settings, weights."""

import json
import shutil

import pytest
import torch

import zoo
from zoo.data import DataError
from zoo.errors import RecipeError, ZooError
from zoo.recipe.seal import sealed
from zoo.runs.folder import RunFolder
from zoo.training import train
from zoo.training.checkpoints import listed
from zoo.training.continuing import Change, changes, check_continues, with_absolute_paths

pytest.importorskip("composer")
pytestmark = pytest.mark.filterwarnings("ignore:.*leaked shared_memory:UserWarning")
SHORT = "train.duration=2ba"
LONGER = "train.duration=3ba"
BPE = ("model.vocab_size=300", "data.tokenizer={kind: bpe, vocab_size: 300}")


@pytest.fixture(scope="module")
def complete(recipe_file, tmp_path_factory):
    """A complete run of two batches."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("complete") / "run"
    train(zoo.load_recipe(recipe_file, [SHORT]), run)
    return run


@pytest.fixture
def run(complete, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(complete, tmp_path / "run")


@pytest.fixture
def other_text(tmp_path):
    """`data.source` over a copy of the text that a test may change."""

    def make(recipe):
        source = recipe().data.source
        folder = shutil.copytree(source.paths[0], tmp_path / "text", dirs_exist_ok=True)
        return folder, f"data.source={{kind: text, paths: [{folder}]}}"

    return make


def content(run):
    return {path: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "log.txt"}


def test_a_run_folder_records_its_data(complete):
    record = json.loads((complete / "data.json").read_text())
    assert record["version"] == zoo.__version__
    assert record["tokenizer"]["kind"] == "byte"
    assert [source["key"] for source in (*record["train"], *record["validation"])] == ["data.source"] * 2
    assert json.loads((complete / "summary.json").read_text())["version"] == zoo.__version__


@pytest.mark.parametrize("settings", [(), BPE])
def test_changed_text_is_refused_for_a_complete_and_for_a_longer_run(recipe, tmp_path, other_text, settings, capsys):
    folder, source = other_text(recipe)
    run, settings = tmp_path / "run", (source, *settings)
    train(recipe(*settings, SHORT), run)
    before = content(run)
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("o", "aw").upper())
    for duration in (SHORT, LONGER):
        with pytest.raises(RecipeError, match=r"data\.source: text .*not the data that .* was trained on") as error:
            train(recipe(*settings, duration), run)
        assert ("data.tokenizer: not the bpe tokenizer" in str(error.value)) == (len(settings) > 1)
        what = "is complete" if duration == SHORT else "resumes after batch 2"
        assert f"run {what} only with the data and tokenizer it was trained with: bring those" in str(error.value)
    assert content(run) == before


def test_touched_text_goes_on(recipe, tmp_path, other_text, capsys):
    folder, source = other_text(recipe)
    train(recipe(source, SHORT), tmp_path / "run")
    for path in folder.iterdir():
        path.touch()
    train(recipe(source, SHORT), tmp_path / "run")
    assert "run complete" in capsys.readouterr().out
    assert train(recipe(source, LONGER), tmp_path / "run").batches == 3


def test_moved_text_goes_on_and_other_text_at_another_place_is_refused(recipe, tmp_path, other_text, capsys):
    folder, source = other_text(recipe)
    run = tmp_path / "run"
    train(recipe(source, SHORT), run)
    moved = f"data.source={{kind: text, paths: [{folder.rename(tmp_path / 'moved')}]}}"
    train(recipe(moved, SHORT), run)
    assert "without effect on its numbers: data.source.paths: ['" in capsys.readouterr().out
    assert train(recipe(moved, LONGER), run).batches == 3
    assert "changed since the last session: data.source.paths: ['" in capsys.readouterr().out
    for path in shutil.copytree(tmp_path / "moved", folder).iterdir():
        path.write_text(path.read_text().upper())
    for duration in (LONGER, "train.duration=4ba"):
        with pytest.raises(RecipeError, match=r"data\.source\.paths: was (.|\n)*data\.source: text .*not the data"):
            train(recipe(source, duration), run)
    (run / "data.json").unlink()
    with pytest.raises(RecipeError, match=r"data\.source\.paths: was (.|\n)*same model and data only"):
        train(recipe(source, LONGER), run)


def test_text_of_which_more_is_read_now_goes_on_with_the_kinds_of_file_of_before(recipe, tmp_path, other_text):
    """As for a run of a version that did not read *.py of a folder."""
    folder, source = other_text(recipe)
    run = tmp_path / "run"
    train(recipe(source, SHORT), run)
    (folder / "more.py").write_text("print(1)\n" * 500)
    with pytest.raises(RecipeError, match=r"data\.source: text .*not the data that .* was trained on"):
        train(recipe(source, LONGER), run)
    assert train(recipe(source, LONGER, "data.source.extensions=[.txt]"), run).batches == 3


def test_a_process_that_found_other_rows_ends_the_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.training.setup.dist.all_gather_object", lambda digest: [digest, digest, "another"])
    with pytest.raises(DataError, match=r"data: process 2 has other rows than process 0; every machine must read"):
        train(recipe(SHORT), tmp_path / "run")
    assert not (tmp_path / "run" / "data.json").exists()


def test_only_the_process_that_keeps_the_log_writes_an_error_into_it(recipe, tmp_path, monkeypatch, caplog):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr("zoo.training.engine.run", fail)
    for rank, records in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        caplog.clear()
        with pytest.raises(ZooError, match="training failed: out of memory"):
            train(recipe(SHORT), tmp_path / "run")
        assert len(caplog.records) == records


def test_a_complete_run_whose_data_are_gone_is_complete(recipe, tmp_path, other_text, capsys):
    folder, source = other_text(recipe)
    train(recipe(source, SHORT), tmp_path / "run")
    shutil.rmtree(folder)
    train(recipe(source, SHORT), tmp_path / "run")
    out = capsys.readouterr().out
    assert "the data cannot be compared with those of the run: source text: " in out
    assert "run complete" in out


def test_a_run_of_an_earlier_version_goes_on_with_bytes(recipe, run, capsys):
    (run / "data.json").unlink()
    assert train(recipe(LONGER), run).batches == 3
    assert "has no data.json, the record of its data (earlier versions wrote none)" in capsys.readouterr().out
    assert (run / "data.json").is_file()


def test_a_run_of_an_earlier_version_needs_its_learnt_tokenizer(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    train(recipe(*BPE, SHORT), run)
    (run / "data.json").unlink()
    train(recipe(*BPE, SHORT), run)
    assert "the tokenizer is the same, whether the text is is not checked" in capsys.readouterr().out
    kept = run / "tokenizer.json"
    text = kept.read_text()
    changed = json.loads(text)
    vocabulary = changed["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    kept.write_text(json.dumps(changed))
    with pytest.raises(RecipeError, match=r"data\.tokenizer: not the tokenizer in .*: other vocabulary"):
        train(recipe(*BPE, LONGER), run)
    kept.unlink()
    with pytest.raises(ZooError, match=r"whether the bpe tokenizer is the same cannot be known\. Copy the tokenizer"):
        train(recipe(*BPE, LONGER), run)


@pytest.mark.parametrize(
    "change",
    [
        "train.optimizer.lr=0.5",
        "train.schedule.kind=linear",
        "train.schedule.warmup=1ba",
        "train.clip_norm=null",
        "train.precision=bf16",
        "train.kernels=reference",
        "eval.batches=1",
    ],
)
def test_other_settings_of_a_complete_run_are_refused(complete, recipe, change):
    key, value = change.split("=")
    before = content(complete)
    with pytest.raises(RecipeError, match=rf"{key}: was .* was trained, which is complete, and is '?(nothing|{value})"):
        train(recipe(SHORT, change), complete)
    assert content(complete) == before


def test_the_same_number_of_batches_in_other_words_is_complete_too(complete, recipe):
    with pytest.raises(RecipeError, match=r"train\.optimizer\.lr: was 0\.01 when"):
        train(recipe("train.duration=256tok", "train.optimizer.lr=1e-4"), complete)


def test_settings_without_effect_are_told_of(complete, recipe, capsys):
    train(recipe(SHORT, "train.checkpoint.keep=7", "train.workers=2", "eval.every=1ba", "summary=x"), complete)
    out = capsys.readouterr().out
    assert "run complete" in out
    assert "changed since it was trained, without effect on its numbers: train.checkpoint.keep: 2 -> 7" in out


def damaged(run, how):
    weights = run / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if how == "cut short":
        data = data[:-1000]
    elif how == "a bit":
        data[-9] ^= 4
    elif how == "longer":
        data += b"\0"
    elif how == "gone":
        return weights.unlink()
    elif how == "of another run":
        data[-400:] = bytes(400)
        import hashlib

        model = run / "model.yaml"
        digest = zoo.files.sha256(weights)
        model.write_text(model.read_text().replace(digest, hashlib.sha256(data).hexdigest()))
    elif how == "other description":
        (run / "model.yaml").write_text("weights: {sha256: 0}\nmodel: {}\n")
    return weights.write_bytes(data)


@pytest.mark.parametrize("how", ["cut short", "a bit", "longer", "gone", "of another run", "other description"])
def test_damaged_weights_of_a_complete_run_are_written_anew(complete, run, recipe, how, capsys):
    damaged(run, how)
    train(recipe(SHORT), run)
    out = capsys.readouterr().out
    assert "run complete" not in out
    assert (how == "gone") != ("written anew from the last checkpoint" in out)
    assert zoo.files.sha256(run / "model.safetensors") == zoo.files.sha256(complete / "model.safetensors")
    zoo.load(run)
    train(recipe(SHORT), run)
    assert "run complete" in capsys.readouterr().out


def test_a_damaged_tokenizer_of_a_complete_run_is_written_anew(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    train(recipe(*BPE, SHORT), run)
    path = run / "tokenizer.json"
    before = path.read_bytes()
    for damage in (lambda: path.write_bytes(before[:-9]), path.unlink):
        damage()
        train(recipe(*BPE, SHORT), run)
        assert "weights and tokenizer are written anew from the last checkpoint" in capsys.readouterr().out
        assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["cut short", "gone"])
def test_damaged_weights_without_a_checkpoint_are_no_silent_start(run, recipe, how):
    damaged(run, how)
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    with pytest.raises(ZooError, match=r"checkpoints: no checkpoint, but .*summary\.json of a complete run"):
        train(recipe(SHORT), run)
    assert content(run) == before


def test_a_complete_run_without_checkpoints_does_not_start_over_for_a_longer_duration(run, recipe):
    for checkpoint in listed(run / "checkpoints"):
        checkpoint.path.unlink()
    with pytest.raises(ZooError, match="training would start over"):
        train(recipe(LONGER), run)
    assert (run / "summary.json").is_file()


@pytest.mark.slow
def test_a_complete_run_whose_last_checkpoint_is_gone_says_what_is_trained_again(recipe, tmp_path, capsys):
    run, often = tmp_path / "run", "train.checkpoint={every: 1ba, keep: all}"
    train(recipe(SHORT, often), run)
    *before, last = listed(run / "checkpoints")
    last.path.unlink()
    train(recipe(LONGER, often), run)
    told = f"the checkpoint of batch {last.batch}, at which the run was complete, is missing: batches from "
    assert f"{told}{before[-1].batch + 1} on are trained again" in capsys.readouterr().out


def test_a_run_of_before_the_narrow_stream_is_told_that_it_goes_on_with_one(run, recipe):
    lines = (run / "recipe.yaml").read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines[:-1] if "residual_stream" not in line)
    assert len(kept.splitlines()) == len(lines) - 2
    (run / "recipe.yaml").write_text(sealed(kept))
    (change,) = changes(RunFolder(run), recipe(SHORT))
    assert str(change) == "train.residual_stream: 'fp32' -> 'bf16'"
    assert not changes(RunFolder(run), recipe(SHORT, "train.residual_stream=fp32"))


@pytest.mark.parametrize("left", ["checkpoints", "model.safetensors", "metrics.jsonl", "data.json"])
def test_a_run_folder_without_its_recipe_is_refused(run, recipe, left):
    (run / "recipe.yaml").unlink()
    for path in run.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(RecipeError, match=r"recipe\.yaml: no such file, but the folder holds .* of a run"):
        train(recipe(SHORT, "seed=9"), run)


@pytest.mark.parametrize("text", ["", "model: [", "name: tiny\n", "\0"])
def test_a_run_folder_with_a_broken_recipe_is_refused(run, recipe, text):
    (run / "recipe.yaml").write_text(text)
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml(?s:.*)the run's own recipe cannot be used; bring recipe\.yaml"
    ):
        train(recipe(SHORT, "seed=9"), run)


def test_another_place_without_the_record_of_the_data_names_the_record(recipe, tmp_path, other_text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(sealed(with_absolute_paths(recipe()).dump()))
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert check_continues(RunFolder(tmp_path / "run"), recipe()) == []
    _, moved = other_text(recipe)
    with pytest.raises(RecipeError, match=r"data\.source\.paths: was (?s:.*)run/data\.json: no such file; without"):
        check_continues(RunFolder(tmp_path / "run"), recipe(moved))


def test_a_folder_that_a_kill_left_before_the_recipe_was_written_is_new(recipe, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "log.txt").touch()
    assert check_continues(RunFolder(tmp_path / "run"), recipe()) == []


def test_a_summary_of_another_version(run, recipe, capsys):
    path = run / "summary.json"
    values = json.loads(path.read_text())
    del values["checksum"]
    path.write_text(json.dumps(values | {"version": "9.0", "later": [1]}))
    assert train(recipe(SHORT), run).batches == 2
    del values["tokens"]
    path.write_text(json.dumps(values | {"version": "0.0.1"}))
    message = r"summary\.json: tokens: Field required; written by version 0\.0\.1 of the zoo, this is .*Remove it"
    with pytest.raises(ZooError, match=message):
        train(recipe(SHORT), run)
    path.unlink()
    assert train(recipe(SHORT), run).batches == 2


def test_lists_of_a_recipe_show_what_differs(complete, recipe):
    (text,) = recipe().data.source.paths
    with pytest.raises(RecipeError, match=r"data\.source\.paths: was \['.*text'\] when .* is \['.*text', '.*b\.txt'\]"):
        train(recipe(f"data.source.paths=[{text}, b.txt]"), complete)
    assert str(Change("train.loggers", [], ["wandb"])) == "train.loggers: [] -> ['wandb']"
