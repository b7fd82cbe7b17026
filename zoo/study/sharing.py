"""How many runs were on the device of a run while it ran, kept over stops of the study. No torch.

    OUT/logs/device-RUN.json    {"seconds", "run_seconds", "whole", "open"}

seconds: how long its processes ran, from start to end, scoring included.  run_seconds: the seconds of all runs on its
device in that time; divided by seconds they are the mean number of runs there.  whole: nothing is missing.  open: a
process has started, and its end has not been recorded.
"""

from pathlib import Path

from zoo.files import present, write_json
from zoo.study.config import StudyError
from zoo.study.expand import Run
from zoo.study.kept import read_sharing, read_summary
from zoo.study.slots import Ended
from zoo.study.state import StudyFolder


def begin(folder: StudyFolder, run: Run) -> None:
    """Note that a process of a run starts, unless the run is trained already and only its scores are missing."""
    kept, file = folder.folder(run), _file(folder, run)
    if read_summary(kept) is not None:
        return
    found = {"seconds": 0.0, "run_seconds": 0.0, "whole": True}
    if kept.traces():
        known = read_sharing(file) if present(file, StudyError) else None
        # Part of the training was not counted: an earlier version, or a study that was killed before the process ended.
        found = found | {"whole": False} if known is None else known | {"whole": known["whole"] and not known["open"]}
    write_json(file, found | {"open": True})


def end(folder: StudyFolder, run: Run, ended: Ended) -> None:
    """Add a process of a run that ended to those before it."""
    file = _file(folder, run)
    known = read_sharing(file) if present(file, StudyError) else None
    if known is None or not known["open"]:
        return
    counted = ended.runs_on_device is not None
    known["seconds"] += ended.seconds
    known["run_seconds"] += ended.seconds * (ended.runs_on_device or 0.0)
    write_json(file, known | {"open": False, "whole": known["whole"] and counted})


def runs_on_device(folder: StudyFolder, run: Run) -> float | None:
    """How many runs were on the device of a run, itself included, as a mean over its time; None if not known."""
    file = _file(folder, run)
    known = read_sharing(file) if present(file, StudyError) else None
    if known is None or known["open"] or not known["whole"] or not known["seconds"]:
        return None
    return max(1.0, round(known["run_seconds"] / known["seconds"], 3))


def _file(folder: StudyFolder, run: Run) -> Path:
    return folder.logs / f"device-{run.id}.json"
