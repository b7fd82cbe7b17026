"""What a study reads back from its folder, checked: it may be damaged, or somebody else's.  No torch."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.errors import first_mistake
from zoo.files import read_json
from zoo.runs.folder import RunFolder
from zoo.study.config import StudyError

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Points = list[tuple[Number, Number]]


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Score(_Content):
    value: Number
    chance: Number | None = None


class _Results(_Content):
    run: str
    seed: Count
    point: str
    batches: Count
    tokens: Count
    parameters: Count
    weights_sha256: str
    data: str | None = None  # earlier versions did not record it
    loss: Number | None
    bits_per_byte: Number | None
    best_loss: Number | None
    validation: Points
    training: Points
    scores: dict[str, dict[str, _Score]]
    versions: dict[str, Count] = {}  # of the tasks; earlier versions of the zoo had the first of each


class _Measured(_Content):
    run: str
    time_s: Number
    tokens_per_s: Number | None
    validation_time: Points
    environment: dict[str, Any]
    runs_on_device: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None  # earlier versions: not known


class _Outcome(_Content):
    """A run that is done: outcomes/RUN.json."""

    recipe: dict[str, Any]
    results: _Results
    measured: _Measured


class _NotDone(_Content):
    """A run that is not done: outcomes/RUN.json."""

    state: Literal["failed", "diverged"]
    why: str = ""


class _Summary(_Content):
    """What a study reads of summary.json."""

    batches: Count
    tokens: Count
    parameters: Count
    time_s: Number
    sha256: str


class _Threads(_Content):
    threads: Annotated[int, Field(ge=1, le=1 << 16)]


class _Sharing(_Content):
    """How many runs were on the device of a run: logs/device-RUN.json."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    run_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    whole: bool
    open: bool


class _Speed(_Content):
    batch: Annotated[int, Field(ge=1, lt=2**31)]
    context: Annotated[int, Field(ge=1, lt=2**31)]
    decode_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Rows(_Content):
    rows: list[dict[str, Any]] = []


class _TrainingRow(_Content):
    tokens_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    step_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    micro_batch: Count
    machine: dict[str, str]


class _TrainingSpeed(_Content):
    rows: Annotated[list[_TrainingRow], Field(min_length=1, max_length=1)]
    recipe: dict[str, Any]
    version: str


def read_outcome(path: Path) -> dict[str, Any]:
    """What became of a run; complete if its state is done.  Raises StudyError that names the file otherwise."""
    way_out = "remove it, and the study trains the run anew or reads its folder"
    found = read_json(path, way_out, StudyError)
    _check(_Outcome if found.get("state") == "done" else _NotDone, found, path, way_out)
    return found


def read_summary(folder: RunFolder) -> dict[str, Any] | None:
    """summary.json of a complete run, else None.  Raises ZooError if it lacks what a study reads of it."""
    found = folder.read_summary()
    if found is not None:
        _check(_Summary, found, folder.summary, "remove its folder to train the run anew")
    return found


def read_threads(path: Path) -> int:
    """Threads of each run.  Raises StudyError that names the file if it does not say."""
    way_out = "remove it, and the study chooses the threads again"
    found = read_json(path, way_out, StudyError)
    _check(_Threads, found, path, way_out)
    return found["threads"]


def read_speeds(path: Path) -> list[dict[str, Any]]:
    """Rows of `zoo bench decode`.  Raises StudyError that names the file for rows that a report cannot show."""
    way_out = "remove it, and zoo study run measures again"
    found = read_json(path, way_out, StudyError)
    _check(_Rows, found, path, way_out)
    rows = found.get("rows", [])
    for row in rows:
        if not row.get("skipped"):
            _check(_Speed, row, path, way_out)
    return rows


def read_sharing(path: Path) -> dict[str, Any]:
    """How many runs were on the device of a run, see `sharing`.  Raises StudyError that names a file without that."""
    way_out = "remove it, and this is not known of the run"
    found = read_json(path, way_out, StudyError)
    _check(_Sharing, found, path, way_out)
    return found


def read_training_speed(path: Path) -> dict[str, Any]:
    """The report of `zoo bench train` of one recipe, with `recipe`, which was measured, and the zoo's `version`.

    Raises StudyError that names the file for a content that a report cannot show.
    """
    way_out = "remove it, and zoo study run measures again"
    found = read_json(path, way_out, StudyError)
    _check(_TrainingSpeed, found, path, way_out)
    return found


def _check(kind: type[BaseModel], found: dict[str, Any], path: Path, way_out: str) -> None:
    """`found` is used as it is, so its values must have the types themselves: "5" is no number."""
    try:
        kind.model_validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        raise StudyError(f"{path}: damaged, or of another version: {first_mistake(error)}; {way_out}") from error
