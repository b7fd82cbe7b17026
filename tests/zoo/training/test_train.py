"""Training runs from recipe to weights in this process: what they leave, how they end, how they continue."""

import json
import logging
import os
import resource
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.errors import RecipeError, ZooError
from zoo.kernels.documents import Documents
from zoo.model import decoder
from zoo.runs.folder import RunFolder
from zoo.runs.metrics import read_metrics
from zoo.training import composer_model, engine, setup, train
from zoo.training.checkpoints import listed
from zoo.training.screen import Screen, log_to, stop_log

pytestmark = pytest.mark.filterwarnings("ignore:.*leaked shared_memory:UserWarning")


def weights(run):
    return load_file(run / "model.safetensors")


def assert_same_weights(run, other):
    found, expected = weights(run), weights(other)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def losses(run):
    return {r["batch"]: r["loss"] for r in read_metrics(run / "metrics.jsonl") if "loss" in r}


def stop_at(monkeypatch, batch, number=signal.SIGTERM):
    """Send this process a signal after so many batches, once."""
    plain, sent = Screen.__call__, []

    def call(self, record):
        if record["batch"] == batch and not sent:
            sent.append(batch)
            os.kill(os.getpid(), number)
        plain(self, record)

    monkeypatch.setattr(Screen, "__call__", call)


@pytest.fixture(scope="module")
def uninterrupted(recipe_file, tmp_path_factory):
    """A run of 12 batches in one go, and its summary."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    return run, train(zoo.load_recipe(recipe_file), run)


def test_what_a_run_leaves(uninterrupted, recipe_file):
    run, summary = uninterrupted
    assert (summary.batches, summary.tokens) == (12, 12 * 4 * 32)
    assert 7 < summary.bits_per_byte_before < 9
    assert summary.bits_per_byte_after < summary.bits_per_byte_before - 1
    assert zoo.load_recipe(run / "recipe.yaml") == zoo.load_recipe(recipe_file)
    assert [c.batch for c in listed(run / "checkpoints")] == [8, 12]
    assert any((run / "tensorboard").iterdir())
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 3
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "trains 12 batches of 128 tokens" in (run / "log.txt").read_text()


def test_the_record_of_metrics(uninterrupted, recipe_file):
    run, summary = uninterrupted
    records = read_metrics(run / "metrics.jsonl")
    validations = [r for r in records if "validation_loss" in r]
    assert [r["batch"] for r in validations] == [0, 6, 12]
    assert validations[0]["validation_bits_per_byte"] == pytest.approx(validations[0]["validation_loss"] / 0.6931472)
    assert validations[-1]["validation_bits_per_byte"] == summary.bits_per_byte_after
    batches = [r for r in records if "loss" in r]
    assert [r["batch"] for r in batches] == list(range(1, 13))
    assert [r["tokens"] for r in batches] == [128 * n for n in range(1, 13)]
    assert [r["lr"] for r in batches[:2]] == pytest.approx([5e-3, 1e-2])
    assert batches[-1]["lr"] == pytest.approx(1e-3)
    assert all(r["grad_norm"] > 0 and r["tokens_per_s"] > 0 for r in batches)


def test_the_weights_load_as_the_trained_model(uninterrupted):
    run, _ = uninterrupted
    model = zoo.load(run)
    assert not model.training
    for name, tensor in weights(run).items():
        assert torch.equal(model.state_dict()[name], tensor)
    state = torch.load(listed(run / "checkpoints")[-1].path, weights_only=False)["state"]["model"]
    assert torch.equal(state[composer_model.PREFIX + "embedding.weight"], model.embedding.weight)


def test_a_complete_run_is_said_to_be_complete(uninterrupted, recipe, capsys):
    run, summary = uninterrupted
    assert train(recipe(), run) == summary
    out = capsys.readouterr().out
    assert "run complete: tiny, 12 batches, 1,536 tokens" in out
    assert "--set train.duration=..." in out
    assert f"remove {run}" in out


@pytest.mark.slow
@pytest.mark.parametrize("batch", [5, 8])
def test_sigterm_saves_and_the_same_command_goes_on_to_the_same_bits(
    uninterrupted, recipe, tmp_path, monkeypatch, capsys, batch
):
    run = tmp_path / "run"
    stop_at(monkeypatch, batch)
    with pytest.raises(
        engine.Interrupted, match=f"stopped after batch {batch} of 12; checkpoint of batch {batch} "
    ) as e:
        train(recipe(), run)
    assert e.value.exit_code == 130
    with pytest.raises(ZooError, match="this run is not finished"):
        zoo.load(run)
    train(recipe(), run)
    assert f"resumes after batch {batch} of 12" in capsys.readouterr().out
    assert_same_weights(run, uninterrupted[0])
    assert losses(run) == losses(uninterrupted[0])
    assert [c.batch for c in listed(run / "checkpoints")] == [8, 12]


def validations(run):
    return {r["batch"]: r["validation_loss"] for r in read_metrics(run / "metrics.jsonl") if "validation_loss" in r}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [pytest.param(0, marks=pytest.mark.long), 6, 12])
def test_sigterm_ends_a_validation_at_once_and_it_is_made_up_for(uninterrupted, recipe, tmp_path, monkeypatch, batch):
    """Before the first batch, in the middle and at the end: its loss is not recorded, and known after a resume."""
    run, forward = tmp_path / "run", composer_model.LanguageModel.eval_forward
    seen = []

    def eval_forward(self, rows, outputs=None):
        if max(losses(run), default=0) == batch:
            seen.append(batch)
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, rows, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(composer_model.LanguageModel, "eval_forward", eval_forward)
        with pytest.raises(engine.Interrupted, match=f"stopped after batch {batch} of 12; "):
            train(recipe(), run)
    assert seen == [batch]  # the first of two batches
    assert batch not in validations(run)
    assert [c.batch for c in listed(run / "checkpoints")] == {0: [], 6: [4, 6], 12: [8, 12]}[batch]
    train(recipe(), run)
    assert_same_weights(run, uninterrupted[0])
    assert losses(run) == losses(uninterrupted[0])
    assert validations(run) == validations(uninterrupted[0])


class Dropout(torch.nn.Module):
    """An embedding followed by dropout, to have a model that draws random numbers while it trains."""

    def __init__(self, embedding):
        super().__init__()
        self.inner, self.dropout = embedding, torch.nn.Dropout(0.2)
        self.weight = embedding.weight

    def forward(self, tokens):
        return self.dropout(self.inner(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("duration", ["12ba", "2.2ep"])
def test_random_state_goes_on_where_it_stopped(recipe, tmp_path, monkeypatch, duration):
    """With dropout, in the middle of the first epoch and of a later one, and exactly at the end of an epoch."""

    def put_dropout_in(module, name, build):
        def with_dropout(*arguments, **options):
            model = build(*arguments, **options)
            model.embedding = Dropout(model.embedding)
            return model

        monkeypatch.setattr(module, name, with_dropout)

    put_dropout_in(decoder, "undrawn", decoder.undrawn)
    put_dropout_in(setup, "build_model", setup.build_model)
    monkeypatch.setattr(engine, "export", lambda folder, recipe, state, _: torch.save(state, folder.weights) or "")
    settings = [f"train.duration={duration}", "train.batch_size=16", "train.checkpoint.keep=all"]
    train(recipe(*settings), tmp_path / "straight")
    expected = torch.load(tmp_path / "straight" / "model.safetensors")
    epoch = (len(losses(tmp_path / "straight")) * 10) // 22
    for batch in [5] if duration == "12ba" else [epoch, epoch + 3]:
        run = tmp_path / f"stopped{batch}"
        with monkeypatch.context() as patch:
            stop_at(patch, batch)
            with pytest.raises(engine.Interrupted):
                train(recipe(*settings), run)
        train(recipe(*settings), run)
        found = torch.load(run / "model.safetensors")
        assert losses(run) == losses(tmp_path / "straight")
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_only_a_few_batches(uninterrupted, recipe, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    stop_at(monkeypatch, 9)
    with pytest.raises(engine.Interrupted):
        train(recipe(), run)
    newest = listed(run / "checkpoints")[-1].path
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    train(recipe(), run)
    out = capsys.readouterr().out
    assert "checkpoint of batch 9 is damaged" in out
    assert "resumes after batch 8 of 12" in out
    assert_same_weights(run, uninterrupted[0])


@pytest.mark.slow
def test_a_crafted_checkpoint_is_refused(recipe, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'proof'}",)

    run = tmp_path / "run"
    stop_at(monkeypatch, 3)
    with pytest.raises(engine.Interrupted):
        train(recipe(), run)
    torch.save({"state": Evil()}, listed(run / "checkpoints")[-1].path)
    with pytest.raises(ZooError, match=r"ep0-ba3-rank0\.pt: refused.*it asks for \w+\.system"):
        train(recipe(), run)
    assert not (tmp_path / "proof").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(
    uninterrupted, recipe, tmp_path, monkeypatch
):
    run, forward = tmp_path / "run", composer_model.LanguageModel.forward
    calls = []

    def goes_wrong(self, batch):
        calls.append(self.training)
        return forward(self, batch) * (float("nan") if sum(calls) == 7 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(composer_model.LanguageModel, "forward", goes_wrong)
        message = r"batch 7: the loss is nan; training stopped.*checkpoint of batch 4 saved in .*ep0-ba4-rank0\.pt"
        with pytest.raises(ZooError, match=message) as error:
            train(recipe(), run)
    assert error.value.exit_code == 1
    assert [c.batch for c in listed(run / "checkpoints")] == [4]
    assert list(losses(run)) == [1, 2, 3, 4, 5, 6], "the record ends before the batch that the message names"
    assert not (run / "model.safetensors").exists()
    train(recipe(), run)
    assert_same_weights(run, uninterrupted[0])


@pytest.mark.slow
def test_a_longer_duration_continues_a_complete_run(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    train(recipe("train.duration=4ba"), run)
    summary = train(recipe("train.duration=6ba", "train.checkpoint.keep=1"), run)
    out = capsys.readouterr().out
    assert summary.batches == 6
    assert "changed since the last session: train.duration: '4ba' -> '6ba'" in out
    assert "resumes after batch 4 of 6" in out
    assert [c.batch for c in listed(run / "checkpoints")] == [6]
    with pytest.raises(RecipeError, match=r"train\.duration: the run has done 6 batches, and 5ba is 5"):
        train(recipe("train.duration=5ba"), run)


@pytest.mark.slow
def test_an_edited_record_of_metrics_is_named_when_the_run_goes_on(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    train(recipe("train.duration=4ba"), run)
    text = (run / "metrics.jsonl").read_text()
    shutil.copytree(run, tmp_path / "same")
    at = text.index('"loss": ') + len('"loss": ')
    (run / "metrics.jsonl").write_text(text[:at] + str(int(text[at]) % 9 + 1) + text[at + 1 :])
    assert (run / "metrics.jsonl").read_text() != text
    capsys.readouterr()
    for duration, folder, times in (("6ba", run, 1), ("8ba", run, 0), ("6ba", tmp_path / "same", 0)):
        train(recipe(f"train.duration={duration}"), folder)
        assert capsys.readouterr().out.count("metrics.jsonl: damaged or edited: not the records of") == times


def test_a_complete_run_of_other_weights_is_refused_untouched(uninterrupted, recipe, tmp_path):
    """As those of an earlier version are: the model is built with one map more than the checkpoint has."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    newest = listed(run / "checkpoints")[-1].path
    kept = torch.load(newest, weights_only=False)
    name = next(name for name in kept["state"]["model"] if name.endswith("0.attention.output.weight"))
    del kept["state"]["model"][name]
    torch.save(kept, newest)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".json", ".yaml")}
    with pytest.raises(ZooError, match=r"version's model: layers\.0\.attention\.output\.weight is missing\. Continue"):
        train(recipe("train.duration=14ba"), run)
    assert "summary.json" in before
    assert {name: (run / name).read_bytes() for name in before} == before


def test_another_recipe_may_not_continue_the_run(uninterrupted, recipe):
    run, _ = uninterrupted
    changed = recipe("model.d_model=32", "data.validation_fraction=0.4", "train.optimizer.lr=1e-4", "eval.batches=3")
    with pytest.raises(RecipeError) as error:
        train(changed, run)
    text = str(error.value)
    assert "model.d_model: was 16 when" in text
    assert "data.validation_fraction: was 0.3 when" in text
    assert "remove" in text
    assert "train.optimizer.lr" not in text
    assert "eval.batches" not in text


@pytest.mark.slow
def test_micro_batches_give_the_gradients_of_the_whole_batch(recipe, tmp_path):
    """Rows differ in how many targets they have: the last row of a piece is padded."""
    settings = ["model.document_mask=true", "train.duration=4ba", "train.optimizer.lr=1e-3"]
    for micro in ("auto", "1", "3"):
        train(recipe(*settings, f"train.micro_batch={micro}"), tmp_path / micro)
    whole = read_metrics(tmp_path / "auto" / "metrics.jsonl")
    for micro in ("1", "3"):
        parts = read_metrics(tmp_path / micro / "metrics.jsonl")
        for one, other in zip(whole, parts, strict=True):
            for name in {"loss", "grad_norm", "validation_loss"} & one.keys():
                assert other[name] == pytest.approx(one[name], rel=2e-5), (one["batch"], name)


def test_packed_rows_are_given_the_room_that_the_data_need(recipe, tmp_path, monkeypatch):
    asked, plain = set(), Documents.from_starts

    def recorded(starts, max_documents=None):
        asked.add(max_documents)
        return plain(starts, max_documents)

    monkeypatch.setattr(Documents, "from_starts", recorded)
    train(recipe("model.document_mask=true", "train.duration=2ba"), tmp_path / "run")
    assert asked == {2}, "texts are longer than a row of 32: one ends, one begins, or padding does"


def test_a_run_without_validation(recipe, tmp_path):
    summary = train(recipe("data.validation_fraction=0", "train.duration=2ba"), tmp_path / "run")
    assert summary.loss_after is None
    assert "validation:" not in summary.text()
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2


def test_two_trainings_into_one_folder(recipe, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(ZooError, match="another process is training into this folder"):
        train(recipe(), tmp_path / "run")


@contextmanager
def files_of_at_most(n_bytes):
    """Writing more into one file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_sentence_and_the_same_command_goes_on(uninterrupted, recipe, tmp_path):
    run = tmp_path / "run"
    message = r"run: training failed: .*File too large: '.*ep0-ba4-rank0\.pt'; no checkpoint .*the same command"
    with files_of_at_most(30_000), pytest.raises(ZooError, match=message) as error:
        train(recipe(), run)
    assert error.value.exit_code == 1
    assert list((run / "checkpoints").iterdir()) == []
    assert "Traceback" in (run / "log.txt").read_text()
    train(recipe(), run)
    assert_same_weights(run, uninterrupted[0])


def test_a_log_that_cannot_be_written_buries_nothing(tmp_path, capfd):
    handler = log_to(tmp_path / "log.txt")
    with files_of_at_most(100):
        for _ in range(9):
            logging.getLogger("zoo.training").info("a line of the log, longer than its ninth part of the room")
        stop_log(handler)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
            "CUDA out of memory. Tried",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to"), "not enough memory"),
        (MemoryError(), "out of memory"),
    ],
)
def test_running_out_of_memory_is_one_sentence_with_a_way_out(recipe, tmp_path, monkeypatch, error, told):
    def forward(self, batch):
        raise error

    monkeypatch.setattr(composer_model.LanguageModel, "forward", forward)
    with pytest.raises(
        ZooError, match=rf"run: training failed: .*{told}.*; a smaller train\.micro_batch, or"
    ) as refused:
        train(recipe("data.validation_fraction=0"), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 1


def test_another_error_of_the_engine_stays_what_it_is(recipe, tmp_path, monkeypatch):
    def forward(self, batch):
        raise RuntimeError("a bug")

    monkeypatch.setattr(composer_model.LanguageModel, "forward", forward)
    with pytest.raises(RuntimeError, match="a bug"):
        train(recipe("data.validation_fraction=0"), tmp_path / "run")


def test_a_run_folder_that_cannot_be_made(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"file: cannot be used as a run folder: Not a directory; .*--run-dir") as error:
        train(recipe(), tmp_path / "file")
    assert error.value.exit_code == 2


def test_damaged_files_of_a_run_are_named(uninterrupted, recipe, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    (run / "summary.json").write_text("{")
    with pytest.raises(ZooError, match=r"summary\.json: damaged, not JSON: .*; remove it, and the same command"):
        train(recipe(), run)
    (run / "summary.json").unlink()
    (run / "environment.json").write_bytes(b"\xff")
    with pytest.raises(ZooError, match=r"environment\.json: (damaged, not JSON|not UTF-8 text): "):
        train(recipe(), run)
    (run / "environment.json").unlink()
    assert train(recipe(), run).sha256 == uninterrupted[1].sha256


def test_the_tokenizer_goes_with_the_weights_and_generating_is_the_next_thing_to_try(recipe, tmp_path, capsys):
    settings = ("data.tokenizer={kind: bpe, vocab_size: 260}", "train.duration=1ba", "train.schedule.warmup=0ba")
    train(recipe(*settings), tmp_path / "run")
    assert f'zoo generate {tmp_path / "run"} --prompt "..."' in "".join(capsys.readouterr())
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    tokenizer = zoo.load_tokenizer(tmp_path / "elsewhere")
    assert len(tokenizer.encode("window latent")) < len("window latent")
    generation = zoo.generate(tmp_path / "elsewhere", "window", max_tokens=3, device="cpu")
    assert generation.texts == [tokenizer.decode(generation.results[0].tokens)]


def test_the_weights_may_be_read_by_whoever_may_read_the_recipe(uninterrupted):
    run, _ = uninterrupted
    assert (run / "model.safetensors").stat().st_mode == (run / "recipe.yaml").stat().st_mode


@pytest.mark.slow
def test_activation_checkpointing_and_the_reference_kernels_change_nothing(recipe, tmp_path):
    plain, other = tmp_path / "plain", tmp_path / "other"
    train(recipe("train.duration=2ba"), plain)
    train(recipe("train.duration=2ba", "train.activation_checkpointing=true", "train.kernels=reference"), other)
    assert losses(plain) == pytest.approx(losses(other), rel=1e-6)
