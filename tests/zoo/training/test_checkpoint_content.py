"""Checkpoints that are whole and yet cannot be continued from: each is refused by name, and nothing of it runs."""

import os
import shutil
import zipfile

import pytest
import torch
from composer.utils import checkpoint as composer_checkpoint
from composer.utils.reproducibility import get_rng_state

from zoo.data.identity import DataRecord
from zoo.errors import ZooError
from zoo.recipe import load_recipe
from zoo.training import checkpoint_content, composer_fixes, train
from zoo.training.checkpoints import Checkpoint, listed

pytestmark = pytest.mark.filterwarnings("ignore:.*leaked shared_memory:UserWarning")


class Evil:
    """Pickles as a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, zipped):
    path, proof = tmp_path / "ep0-ba1-rank0.pt", tmp_path / "proof"
    torch.save({"state": Evil(f"touch {proof}")}, path, _use_new_zipfile_serialization=zipped)
    with composer_fixes.fixed(), pytest.raises(ZooError, match=r"ep0-ba1-rank0\.pt: refused, because"):
        composer_checkpoint._torch_load_with_validation(path, "cpu")
    assert not proof.exists()


def test_what_composer_saves_is_read(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"rng": get_rng_state(), "state": {"w": torch.ones(2), "version": torch.__version__}}, path)
    assert checkpoint_content.read_safely(path)["state"]["w"].tolist() == [1, 1]


def state_of(weights: dict) -> dict:
    """The state in a checkpoint of batch 1, as far as it is looked at."""
    model = {f"summed_loss.decoder.{name}": value for name, value in weights.items()}
    return {"model": model, "optimizers": {}, "timestamp": {"Timestamp": {"batch": 1}}}


def test_a_checkpoint_of_other_weights_is_one_clear_error(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "ep0-ba1-rank0.pt"
    right = {name: torch.ones(2) for name in ("output", "query")}
    refuse = checkpoint_content.refuse_other_weights
    refuse(path, state_of(right), right)
    said = (
        r"ba1-rank0\.pt: not the weights of this version's model: input is missing \(and 1 more\)\. .*remove .*run to"
    )
    with pytest.raises(ZooError, match=said):
        refuse(path, state_of(right), {"input": torch.ones(2), "output": torch.ones(2)})
    with pytest.raises(ZooError, match=r"output must be \[3\]; found \[2\]\. Continue"):
        refuse(path, state_of(right), right | {"output": torch.ones(3)})
    with pytest.raises(ZooError, match=r"output must be \[2\]; found int"):
        refuse(path, state_of(right | {"output": 7}), right)


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.ones(3), {"state": {}}, {"rng": [], "state": {"model": 3}}, {"state": {"model": {}}}],
    ids=str,
)
def test_a_file_of_torch_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "ep0-ba1-rank0.pt"
    torch.save(content, path)
    with pytest.raises(ZooError, match=r"ba1-rank0\.pt: not the checkpoint of a training: it must have rng"):
        checkpoint_content.read_state(Checkpoint(path, 1))


@pytest.mark.parametrize("clock", [{}, {"Timestamp": 3}, {"Timestamp": {"batch": 2}}, {"Timestamp": {"batch": "1"}}])
def test_a_checkpoint_under_the_name_of_another_batch(tmp_path, clock):
    path = tmp_path / "ep0-ba1-rank0.pt"
    torch.save({"rng": [], "state": state_of({}) | {"timestamp": clock}}, path)
    with pytest.raises(ZooError, match=r"ba1-rank0\.pt: its name says batch 1, and it is of batch .*bring the check"):
        checkpoint_content.read_state(Checkpoint(path, 1))


def test_a_zip_archive_of_something_else(tmp_path):
    path = tmp_path / "ep0-ba1-rank0.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ZooError, match=r"ba1-rank0\.pt: refused, because a checkpoint holds tensors"):
        checkpoint_content.refuse_code(path)


@pytest.mark.parametrize("callbacks", [None, 3, {"OfRun": 3}, {"OfRun": {"run": 3}}, {"OfRun": {"run": "other"}}])
def test_a_checkpoint_that_does_not_name_its_run(tmp_path, callbacks):
    path = tmp_path / "run" / "checkpoints" / "ep0-ba1-rank0.pt"
    with pytest.raises(ZooError, match=r"ba1-rank0\.pt: a checkpoint of another run than .*run/data\.json"):
        checkpoint_content.refuse_other_run(path, {"callbacks": callbacks}, "this")
    checkpoint_content.refuse_other_run(path, {"callbacks": {"OfRun": {"run": "this"}}}, "this")


@pytest.fixture(scope="module")
def two_runs(recipe_file, tmp_path_factory):
    """Two complete runs of the same recipe."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("two")
    for name in ("run", "other"):
        train(load_recipe(recipe_file, ["train.duration=2ba"]), folder / name)
    return folder


@pytest.fixture
def run(two_runs, tmp_path):
    return shutil.copytree(two_runs / "run", tmp_path / "run")


def test_the_checkpoint_of_another_run_is_refused(two_runs, run, recipe):
    ours, theirs = (DataRecord.read(two_runs / name / "data.json") for name in ("run", "other"))
    assert ours.run != theirs.run
    assert ours.digest == theirs.digest
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(two_runs / "other" / "checkpoints", run / "checkpoints")
    with pytest.raises(ZooError, match=r"ep0-ba2-rank0\.pt: a checkpoint of another run than .*data\.json; bring"):
        train(recipe("train.duration=3ba"), run)


def test_a_lost_record_gets_the_id_of_the_checkpoint(two_runs, run, recipe):
    (run / "data.json").unlink()
    train(recipe("train.duration=3ba"), run)
    assert DataRecord.read(run / "data.json").run == DataRecord.read(two_runs / "run" / "data.json").run


def change_optimizer(content):
    content["state"]["optimizers"] = {"Other": content["state"]["optimizers"].popitem()[1]}


def empty_optimizer(content):
    (name,) = content["state"]["optimizers"]
    content["state"]["optimizers"][name] = {"state": 3, "param_groups": []}


def shorten_random_state(content):
    content["rng"][0]["torch"] = content["rng"][0]["torch"][:10]


def lose_random_state(content):
    content["rng"] = [{"torch": 3}]


def change_clock(content):
    content["state"]["timestamp"]["Timestamp"] = {"batch": content["state"]["timestamp"]["Timestamp"]["batch"]}


@pytest.mark.parametrize(
    "change", [change_optimizer, empty_optimizer, shorten_random_state, lose_random_state, change_clock]
)
def test_strange_content_is_refused_with_the_name_of_the_file(run, recipe, change):
    path = listed(run / "checkpoints")[-1].path
    content = checkpoint_content.read_safely(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(ZooError, match=r"ep0-ba2-rank0\.pt: a checkpoint that cannot be continued from \("):
        train(recipe("train.duration=3ba"), run)
