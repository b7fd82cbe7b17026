"""The speeds of a study that are measured at its end, one after the other, while nothing else runs. No torch.

OUT/speed/NAME.json            the report of `zoo bench decode` for the recipe of an architecture
OUT/speed/training/NAME.json   that of `zoo bench train`, with the recipe and the version of the zoo

A file that is there is not measured again; a training speed only if it is of the same model and the same batches.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import __version__
from zoo.child import plugin_options, python_module
from zoo.files import present, read_json, write_json
from zoo.processes import processor
from zoo.recipe import Recipe, recorded_recipe
from zoo.study.config import MeasureConfig, StudyError
from zoo.study.expand import Run
from zoo.study.gpus import visible_gpus
from zoo.study.kept import read_training_speed
from zoo.study.results import device_of
from zoo.study.slots import THREADS
from zoo.study.state import StudyFolder, last_words

if TYPE_CHECKING:
    from zoo.study.runner import Runner  # imports this module

STEPS = 50  # batches of a training that are timed, after the warm-up of zoo bench train


def measure_speeds(runner: "Runner") -> None:
    """Measure what the study asks for and what is not there yet; says what could not be measured, and why."""
    wanted = runner.runs.study.config.measure
    if wanted is None:
        return
    for name in runner.runs.architectures:
        point = runner.point(name)
        if point is None:
            continue
        runs = list(runner.runs.counting(name, point))
        runner.folder.write_recipe(runs[0])
        if not present(_decoding_file(runner.folder, name)):
            _measure_decoding(runner, name, runs[0], wanted)
        if wanted.training and training_speed(runner.folder, runs[0]) is None:
            _measure_training(runner, name, runs)


def training_speed(folder: StudyFolder, run: Run) -> dict[str, Any] | None:
    """The training speed of the architecture of a run, measured alone; None if there is none of its recipe.

    Returns {"tokens_per_s", "step_ms", "micro_batch", "machine"}; machine: the device and the versions.
    Raises StudyError that names a damaged file.
    """
    file = _training_file(folder, run.architecture)
    if not present(file, StudyError):
        return None
    found = read_training_speed(file)
    if _what_decides_speed(recorded_recipe(found["recipe"])) != _what_decides_speed(run.recipe):
        return None  # the study file has changed since
    row = found["rows"][0]
    versions = {key: value for key, value in row["machine"].items() if key != "date"}
    machine = versions | {"attention-zoo": found["version"]}
    return {key: row[key] for key in ("tokens_per_s", "step_ms", "micro_batch")} | {"machine": machine}


def _what_decides_speed(recipe: Recipe | None) -> object:
    return recipe and (recipe.model, recipe.train, recipe.seq_len)


def _decoding_file(folder: StudyFolder, name: str) -> Path:
    return folder.speed / f"{name}.json"


def _training_file(folder: StudyFolder, name: str) -> Path:
    return folder.training_speed / f"{name}.json"


def _measure_decoding(runner: "Runner", name: str, run: Run, wanted: MeasureConfig) -> None:
    contexts, batches = (",".join(map(str, each)) for each in (wanted.contexts, wanted.batches))
    asked = ["decode", str(runner.folder.recipe(run)), "--context", contexts, "--batch", batches]
    log = runner.folder.logs / f"speed-{name}.txt"
    file = _decoding_file(runner.folder, name)
    if (temporary := _bench(runner, name, "decoding", asked, file, log, {})) is not None:
        os.replace(temporary, file)


def _measure_training(runner: "Runner", name: str, runs: list[Run]) -> None:
    if (why := _other_device(runner, runs)) is not None:
        runner.say(f"{name}: training speed is not measured: {why}")
        return
    log = runner.folder.logs / f"speed-training-{name}.txt"
    file = _training_file(runner.folder, name)
    asked = ["train", str(runner.folder.recipe(runs[0])), "--steps", str(STEPS)]
    # As a run has them: on a CPU the speed depends on the threads, and a run may have one GPU.
    environment = dict.fromkeys(THREADS, str(runner.slots.threads))
    if gpus := visible_gpus():
        environment["CUDA_VISIBLE_DEVICES"] = gpus[0].id
    if (temporary := _bench(runner, name, "training", asked, file, log, environment)) is not None:
        found = read_json(temporary) | {"recipe": runs[0].recipe.model_dump(mode="json"), "version": __version__}
        write_json(file, found)
        temporary.unlink()


def _other_device(runner: "Runner", runs: list[Run]) -> str | None:
    """Why the speed on this machine is not that of the runs' device; None if it is, or runs do not name theirs."""
    used = {device for run in runs if (device := device_of(runner.folder, run)) is not None}
    gpus = visible_gpus()
    here = gpus[0].name if gpus else processor()
    if not used or here in used:
        return None
    return (
        f"its runs were trained on {', '.join(sorted(used))}, and this machine has {here}; "
        "the same command on a machine with that device measures it"
    )


def _bench(
    runner: "Runner", name: str, what: str, asked: list[str], file: Path, log: Path, environment: dict[str, str]
) -> Path | None:
    """Run `zoo bench ...`; returns a temporary file with its report, None if it failed, which is then said."""
    runner.say(f"{name}: measuring {what} speed")
    temporary = file.with_name(f".measuring-{file.name}")
    command = python_module("zoo.cli.bench_of_study", ["bench", *asked, "--json", str(temporary), *plugin_options()])
    if runner.wait_for(command, log, environment) == 0:
        return temporary
    temporary.unlink(missing_ok=True)  # of bench decode it may hold a part
    runner.say(f"{name}: {what} speed could not be measured: {last_words(log) or 'it said nothing'}; log: {log}")
    return None
