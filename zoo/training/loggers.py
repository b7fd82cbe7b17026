"""Where metrics go: metrics.jsonl and TensorBoard events always, Weights & Biases and MLflow by name."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

from zoo.errors import Problem, RecipeError, ZooError
from zoo.files import write_text


class JsonLines:
    """metrics.jsonl: one JSON object a line.

    from_batch: the batch a run starts at. Lines of later batches, which a killed run wrote after its last checkpoint,
    are dropped, so that every batch is there once.
    """

    def __init__(self, path: Path, from_batch: int):
        kept = [line for line, record in _read(path) if record["batch"] <= from_batch] if from_batch else []
        write_text(path, "".join(kept))
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the run

    def __call__(self, record: dict) -> None:
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line that a kill cut short is left out."""
    return [record for _, record in _read(path)]


def _read(path: Path) -> list[tuple[str, dict]]:
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            found.append((line.decode(errors="replace"), _record(line, f"{path}:{number}")))
    return found


def _record(line: bytes, place: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ZooError(f"{place}: damaged, not JSON: {error}; remove the line") from error
    if not (isinstance(record, dict) and isinstance(record.get("batch"), int)):
        raise ZooError(f"{place}: damaged, no record of a batch; remove the line")
    return record


class TensorBoard:
    """TensorBoard events, under train/ and validation/. Points after `from_batch` of an earlier run are purged."""

    def __init__(self, folder: Path, from_batch: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=from_batch + 1 if from_batch else None)

    def __call__(self, record: dict) -> None:
        label = "validation" if "validation_loss" in record else "train"
        for name, value in record.items():
            if name not in ("batch", "tokens", "time_s"):
                self._writer.add_scalar(f"{label}/{name.removeprefix('validation_')}", value, record["batch"])
        if label == "validation":
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def check_installed(names: list[str]) -> None:
    """Raise RecipeError for a logger whose library is missing."""
    for name in names:
        if name in ("wandb", "mlflow") and find_spec(name) is None:
            message = f"{name} is not installed; to use it: pip install 'attention-zoo[{name}]'"
            raise RecipeError([Problem(message, key="train.loggers")])


def composer_loggers(names: list[str], run_name: str, run_dir: Path) -> list:
    """Composer's loggers for the names that are not the zoo's own. They are set up by their own environment variables
    (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, ...)."""
    loggers = []
    if "wandb" in names:
        from composer.loggers import WandBLogger

        os.environ.setdefault("WANDB_SILENT", "true")
        loggers.append(WandBLogger(name=run_name, init_kwargs={"dir": str(run_dir)}))
    if "mlflow" in names:
        from composer.loggers import MLFlowLogger

        loggers.append(MLFlowLogger(experiment_name="attention-zoo", run_name=run_name))
    return loggers
