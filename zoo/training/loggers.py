"""Where metrics go: metrics.jsonl and TensorBoard events always, Weights & Biases and MLflow by name."""

import hashlib
import json
import os
import re
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.blocks.making import PartError, make, type_name
from zoo.errors import Problem, RecipeError, ZooError
from zoo.extras import install_command, installing
from zoo.files import open_text_to_append, present, read_json, write_text
from zoo.parts import LOGGERS
from zoo.runs.metrics import read_lines


class JsonLines:
    """metrics.jsonl: one JSON object a line.

    from_batch: the batch a run starts at. Lines of later batches, which a killed run wrote after its last checkpoint,
    are dropped, so that every batch is there once.  missing: how many batches before have no line, as in a file that
    was emptied or removed.
    """

    def __init__(self, path: Path, from_batch: int):
        before = read_lines(path) if from_batch else []
        kept = [(line, record) for line, record in before if record["batch"] <= from_batch]
        self.missing = from_batch - len({record["batch"] for _, record in kept if "loss" in record})
        text = "".join(line for line, _ in kept)
        write_text(path, text)
        self._file = open_text_to_append(path)
        self._written, self._hash = len(text.encode()), hashlib.sha256(text.encode())

    def __call__(self, record: dict) -> None:
        line = json.dumps(record) + "\n"
        self._file.write(line)
        self._written += len(line.encode())
        self._hash.update(line.encode())

    def mark(self) -> dict[str, Any]:
        """The bytes in the file so far and their SHA-256, which a checkpoint keeps."""
        return {"bytes": self._written, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """TensorBoard events, under train/ and validation/. Points after `from_batch` of an earlier run are purged."""

    def __init__(self, folder: Path, from_batch: int):
        from torch.utils.tensorboard import SummaryWriter

        started_over = not from_batch and folder.is_dir()  # killed before its first checkpoint
        purged = 0 if started_over else from_batch + 1 if from_batch else None
        self._writer = SummaryWriter(str(folder), purge_step=purged)

    def __call__(self, record: dict) -> None:
        label = "validation" if "validation_loss" in record else "train" if "loss" in record else "scores"
        for name, value in record.items():
            if name not in ("batch", "tokens", "time_s"):
                self._writer.add_scalar(f"{label}/{name.removeprefix('validation_')}", value, record["batch"])
        if label == "validation":
            self._writer.flush()

    def close(self) -> None:
        """Write what is left, and close the files."""
        self._writer.close()


def check_installed(names: list[str]) -> None:
    """Raise RecipeError for a logger whose library is missing."""
    for name in names:
        config = LOGGERS.config_class(name)
        if config.package and find_spec(config.package) is None:
            command = install_command(config.extra) if config.extra else installing([config.package])
            message = f"{config.package} is not installed; to install it: {command}"
            raise RecipeError([Problem(message, key="train.loggers")])


def composer_loggers(names: list[str], run_name: str, run_dir: Path) -> list:
    """Composer's loggers for the names that are not always written. They are set up by their own environment variables
    (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, ...).

    A run folder is one run of theirs: its id is kept in loggers.json, and later sessions go on with it, unless
    WANDB_RUN_ID or MLFLOW_RUN_ID names another.
    """
    configs = {name: LOGGERS.config_class(name) for name in names}
    return [
        make(f"logger {name!r}", config.module, run_name, run_dir) for name, config in configs.items() if config.module
    ]


def only_destinations(loggers: list) -> list:
    """The loggers.  Raises PartError if one is nothing that Composer logs to, as one of another package may be."""
    from composer.loggers import LoggerDestination

    for logger in loggers:
        if not isinstance(logger, LoggerDestination):
            found = type_name(logger)
            raise PartError(f"train.loggers: a logger must be a composer.loggers.LoggerDestination; found {found}")
    return loggers


def make_wandb(run_name: str, run_dir: Path):
    """Composer's logger for Weights & Biases."""
    from composer.loggers import WandBLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    # "allow": goes on with the id if the server knows it, and begins it if not (another project, offline before).
    kept, same = KeptIds(run_dir / "loggers.json"), {}
    if "WANDB_RUN_ID" not in os.environ:
        same["id"] = kept.get("wandb") or kept.keep("wandb", secrets.token_hex(4))
    return WandBLogger(name=run_name, init_kwargs={"dir": str(run_dir), "resume": "allow", **same})


def make_mlflow(run_name: str, run_dir: Path):
    """Composer's logger for MLflow, which goes on with the run of the run folder."""
    return _mlflow(KeptIds(run_dir / "loggers.json"), experiment_name="attention-zoo", run_name=run_name)


class KeptIds:
    """loggers.json of a run folder: the ids by which Weights & Biases and MLflow know the run."""

    def __init__(self, path: Path):
        self.path = path
        found = read_json(path) if present(path) else {}
        self._ids = found if isinstance(found, dict) else {}

    def get(self, name: str) -> str | None:
        """The kept id, None if there is none."""
        found = self._ids.get(name)
        return found if isinstance(found, str) and re.fullmatch(r"[\w-]{1,64}", found) else None

    def keep(self, name: str, identity: str) -> str:
        """Write an id down, on the first of several processes, and return it."""
        self._ids[name] = identity
        if int(os.environ.get("RANK", 0)) == 0:
            write_text(self.path, json.dumps(self._ids) + "\n")
        return identity


def _mlflow(kept: KeptIds, **settings):
    from composer.loggers import MLFlowLogger

    class OneRun(MLFlowLogger):
        """Composer looks for a run of the same name, which another run folder may have begun; here the id decides."""

        def _start_mlflow_run(self, state) -> None:
            before = os.environ.get("MLFLOW_RUN_ID")
            same = before or kept.get("mlflow")
            if same is not None:
                os.environ["MLFLOW_RUN_ID"] = same
            try:
                super()._start_mlflow_run(state)
            except Exception as error:  # of the server, of a file store, or of MLflow itself
                if before is not None or same is None:
                    raise
                why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ZooError(
                    f"{kept.path}: MLflow cannot go on with run {same}: {why}; remove the file to begin a new one there"
                ) from error
            finally:
                if before is None:
                    os.environ.pop("MLFLOW_RUN_ID", None)
            if before is None and same is None:
                kept.keep("mlflow", self._run_id)

    return OneRun(**settings)
