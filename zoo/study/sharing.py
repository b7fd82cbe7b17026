"""How many runs were on the device of a run while it ran, kept over stops of the study. No torch.

    OUT/logs/device-RUN.json    {"seconds", "run_seconds", "whole", "open"}

seconds: how long its processes ran, from start to end, scoring included.  run_seconds: the seconds of all runs on its
device in that time; divided by seconds they are the mean number of runs there.  whole: nothing is missing.  open: a
process has started, and its end has not been recorded.
"""

from pathlib import Path
from typing import Any

from zoo.files import present, write_json
from zoo.study.config import StudyError
from zoo.study.expand import Run
from zoo.study.kept import read_sharing, read_summary
from zoo.study.slots import Ended
from zoo.study.state import StudyFolder


def begin(folder: StudyFolder, run: Run) -> None:
    """Note that a process of a run starts; it is not counted if the run is trained already and is only scored."""
    kept = folder.folder(run)
    found = _read(folder, run) if kept.traces() else {"seconds": 0.0, "run_seconds": 0.0, "whole": True, "open": False}
    if found is None:  # an earlier version began it
        found = {"seconds": 0.0, "run_seconds": 0.0, "whole": False}
    elif found["open"]:  # the study was killed before the process ended, which was not counted
        found["whole"] = False
    write_json(_file(folder, run), found | {"open": read_summary(kept) is None})


def end(folder: StudyFolder, run: Run, ended: Ended) -> None:
    """Add a process of a run that ended to those before it."""
    known = _read(folder, run)
    if known is None or not known["open"]:
        return
    counted = ended.runs_on_device is not None
    known["seconds"] += ended.seconds
    known["run_seconds"] += ended.seconds * (ended.runs_on_device or 0.0)
    write_json(_file(folder, run), known | {"open": False, "whole": known["whole"] and counted})


def runs_on_device(folder: StudyFolder, run: Run) -> float | None:
    """How many runs were on the device of a run, itself included, as a mean over its time; None if not known."""
    known = _read(folder, run)
    if known is None or known["open"] or not known["whole"] or not known["seconds"]:
        return None
    return max(1.0, round(known["run_seconds"] / known["seconds"], 3))


def _read(folder: StudyFolder, run: Run) -> dict[str, Any] | None:
    file = _file(folder, run)
    return read_sharing(file) if present(file, StudyError) else None


def _file(folder: StudyFolder, run: Run) -> Path:
    return folder.logs / f"device-{run.id}.json"
