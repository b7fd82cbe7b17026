"""Studies of tiny recipes, whose runs are made by rule (synthetic.py)."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.zoo.study import synthetic
from zoo.study.config import load_study
from zoo.study.expand import expand
from zoo.study.runner import Runner
from zoo.study.slots import Slots
from zoo.study.state import StudyFolder

TINY = Path(__file__).parents[3] / "recipes" / "tiny"


@pytest.fixture
def write_study(tmp_path) -> Callable[..., Path]:
    """`write_study(recipes=["full"], ...)`: a study file with keys of its own; its folder is beside it."""

    def make(recipes=("full", "window"), **keys) -> Path:
        named = [str(TINY / f"{each}.yaml") if isinstance(each, str) else each for each in recipes]
        content = {"name": "toy", "recipes": named, "seeds": [1, 2, 3, 4], "out": str(tmp_path / "out"), **keys}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return make


@pytest.fixture
def make_runner(write_study) -> Callable[..., Runner]:
    """`make_runner(...)`: the runner of such a study, whose processes train by rule."""

    def make(jobs: int = 2, batch_s: float = 0.0, rows: str | None = None, **keys) -> Runner:
        return runner_of(write_study(**keys), jobs, batch_s, rows)

    return make


def runner_of(path: Path, jobs: int = 2, batch_s: float = 0.0, rows: str | None = None, **options) -> Runner:
    """The runner of a study file, whose processes train by rule.  rows: the hash of the rows that are prepared."""
    runs = expand(load_study(path))

    def train(runner: Runner, run) -> list[str]:
        folder = runner.folder
        arguments = [
            str(folder.recipe(run)),
            str(folder.folder(run).path),
            str(batch_s),
            json.dumps(runner.tasks_of(run)),
        ]
        return [sys.executable, synthetic.__file__, *arguments]

    def prepare(runner: Runner, run) -> list[str]:
        code = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{json.dumps({'rows': rows})}')"
        return [sys.executable, "-c", code, str(runner.folder.prepared(run))]

    slots = Slots(jobs, cores=2)
    return Runner(runs, StudyFolder(runs.study.folder), slots, command=train, prepare=prepare, poll_s=0.02, **options)
