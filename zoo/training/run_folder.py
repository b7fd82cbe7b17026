"""The run folder: what lies where, whether a run is finished, and whether a recipe may continue it."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import Problem, RecipeError, ZooError, shorten
from zoo.files import read_json, write_text

# Keys of a recipe that may differ when a run continues: how long, how watched, how executed, and the learning rate,
# which is lowered after a divergence. Anything else would make another model, other data or another optimiser.
CHANGEABLE = (
    "name",
    "summary",
    "eval",
    "data.workers",
    "data.cache_dir",
    "train.duration",
    "train.optimizer.lr",
    "train.schedule",
    "train.clip_norm",
    "train.micro_batch",
    "train.precision",
    "train.activation_checkpointing",
    "train.kernels",
    "train.compile",
    "train.parallelism",
    "train.workers",
    "train.checkpoint",
    "train.loggers",
)


class RunFolderError(ZooError):
    """A run folder that cannot be used; the message says which part of it, and what to do."""

    exit_code = 2


class RunFolder:
    """runs/<name>/ and its files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.weights = self.path / "model.safetensors"
        self.model = self.path / "model.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.environment = self.path / "environment.json"
        self.summary = self.path / "summary.json"
        self.log = self.path / "log.txt"

    def changes(self, recipe) -> list[tuple[str, object, object]]:
        """(key, before, now) for every key of `recipe` that differs from the recipe this folder was started with."""
        from zoo.recipe import load_recipe

        if not self.recipe.is_file():
            return []
        before, now = (_flat(r.model_dump(mode="json")) for r in (load_recipe(self.recipe, of_run=True), recipe))
        keys = [*before, *(key for key in now if key not in before)]
        return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]

    def check_continues(self, recipe) -> list[str]:
        """Sentences about allowed changes; raises RecipeError that names every key that may not change."""
        changes = self.changes(recipe)
        refused = [change for change in changes if not _may_change(change[0])]
        if refused:
            problems = [
                Problem(f"was {shorten(before)} when {self.path} was started, and is {shorten(now)} now", key=key)
                for key, before, now in refused
            ]
            way_out = f"a run continues with the same model and data only. Use another --run-dir, or remove {self.path}"
            raise RecipeError([*problems, Problem(way_out)])
        return [f"{key}: {shorten(before)} -> {shorten(now)}" for key, before, now in changes]

    def read_summary(self) -> dict | None:
        """summary.json of a finished run, else None."""
        if not (self.summary.is_file() and self.weights.is_file()):
            return None
        return read_json(self.summary)

    def write_summary(self, summary: dict) -> None:
        write_text(self.summary, json.dumps(summary, indent=1) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it: a second process that trains into it is refused instead of mixing files."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "w")  # noqa: SIM115 - closed below
        except OSError as error:
            message = f"cannot be used as a run folder: {error.strerror}; name another with --run-dir"
            raise RunFolderError(f"{self.path}: {message}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ZooError(f"{self.path}: another process is training into this folder") from None
            yield


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE)


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, object] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found
