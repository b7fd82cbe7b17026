"""Whether a recipe, with its data, may continue a run or be answered with the numbers of a complete one.  No torch.

Three things are compared with what the run folder holds: the keys of the recipe, the content of data and tokenizer,
and the weights of a complete run.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data import places
from zoo.data.config import HuggingFaceTokenizer
from zoo.data.errors import DataError
from zoo.data.identity import DataRecord, tokenizer_record
from zoo.data.prepared import PreparedData
from zoo.data.tokenizers import Bytes, load_huggingface
from zoo.errors import Problem, RecipeError, ZooError
from zoo.files import present, sha256, write_sealed_json
from zoo.recipe.differences import differences, in_words
from zoo.runs.folder import RunFolder
from zoo.runs.weights import LoadError, check_tokenizer, recorded_digest

# Keys of a recipe that may differ when a run continues: how long, how watched, how executed, and the learning rate,
# which is lowered after a divergence. Anything else would make another model, other data or another optimiser.
CHANGEABLE = (
    "name",
    "summary",
    "eval",
    "data.workers",
    "data.cache_dir",
    "train.duration",
    "train.stop_at",
    "train.optimizer.lr",
    "train.schedule",
    "train.clip_norm",
    "train.micro_batch",
    "train.precision",
    "train.residual_stream",
    "train.activation_checkpointing",
    "train.kernels",
    "train.cuda_graph",
    "train.parallelism",
    "train.reshard_after_forward",
    "train.gradient_sync",
    "train.workers",
    "train.stall_minutes",
    "train.checkpoint",
    "train.loggers",
)
# Those of them that leave the numbers of a run as they are, but for the order of sums.
WATCHING = (
    "name",
    "summary",
    "eval.every",
    "eval.tasks",
    "data.workers",
    "data.cache_dir",
    "train.micro_batch",
    "train.activation_checkpointing",
    "train.cuda_graph",
    "train.parallelism",
    "train.reshard_after_forward",
    "train.gradient_sync",
    "train.workers",
    "train.stall_minutes",
    "train.checkpoint",
    "train.loggers",
)
# Where data and tokenizer lie, and which files of a folder are read: may differ if the run folder records their
# content, which is compared then.  A run of a version that read fewer kinds of file goes on with `extensions`.
PLACE = re.compile(
    r"data\.(source|sources\[\d+\]|validation_source|tokenizer)"
    r"\.(paths|path|local|remote|extensions|on_error)(\[\d+\])?"
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Change:
    """A key whose value differs from the one in the run folder's recipe.yaml."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        before, now = in_words(self.before, self.now)
        return f"{self.key}: {before} -> {now}"

    def under(self, keys: Sequence[str]) -> bool:
        """Whether the key is one of `keys` or below one."""
        return any(self.key == key or self.key.startswith((f"{key}.", f"{key}[")) for key in keys)

    @property
    def of_place(self) -> bool:
        """Whether the key says where data or tokenizer lie, or which files are read there."""
        return PLACE.fullmatch(self.key) is not None

    def problem(self, then: str) -> Problem:
        """The change as a problem of its key.  then: what the old value belongs to, as in `runs/x was started`."""
        before, now = in_words(self.before, self.now)
        return Problem(f"was {before} when {then}, and is {now} now", key=self.key)


def changes(folder: RunFolder, recipe) -> list[Change]:
    """What differs between `recipe` and the one that the run folder was started with; empty for a new folder.

    Raises RecipeError if recipe.yaml cannot be read, or is missing in a folder that holds a run: nothing else says
    which model, data and seed the run is of.
    """
    from zoo.recipe import load_recipe

    if not present(folder.recipe):
        if left := folder.traces():
            why = (
                f"no such file, but the folder holds {left[0].name} of a run, so its model, data and seed are not "
                f"known; bring recipe.yaml back, use another --run-dir, or remove {folder.path} to start over"
            )
            raise RecipeError([Problem(why, file=str(folder.recipe))])
        return []
    try:
        kept = load_recipe(folder.recipe, of_run=True)
    except RecipeError as error:
        way_out = f"bring recipe.yaml back, use another --run-dir, or remove {folder.path} to start over"
        raise RecipeError([*error.problems, Problem(f"the run's own recipe cannot be used; {way_out}")]) from error
    sides = (with_absolute_paths(each).model_dump(mode="json") for each in (kept, recipe))
    found = differences(*sides)
    return [Change(*difference) for difference in found]


def with_absolute_paths(recipe):
    """The recipe with paths that mean the same in every working directory, as a run folder keeps it."""
    train = recipe.train
    if train.init_from is not None:
        train = train.model_copy(update={"init_from": places.absolute(train.init_from)})
    return recipe.model_copy(update={"data": places.with_absolute_paths(recipe.data), "train": train})


def check_continues(folder: RunFolder, recipe) -> list[Change]:
    """The allowed changes; raises RecipeError that names every key that may not change.

    Another place of the data is allowed if the run folder records their content: `check_data` compares it.
    """
    found = changes(folder, recipe)
    recorded = present(folder.data)
    if refused := [change for change in found if not (change.under(CHANGEABLE) or (recorded and change.of_place))]:
        problems = [change.problem(f"{folder.path} was started") for change in refused]
        if not recorded and any(change.of_place for change in refused):
            why = "no such file; without this record, data at another place are not known to be the same: bring it back"
            problems.append(Problem(why, file=str(folder.data)))
        way_out = f"a run continues with the same model and data only. Use another --run-dir, or remove {folder.path}"
        raise RecipeError([*problems, Problem(f"{way_out}.{new_run(folder)}")])
    return found


def new_run(folder: RunFolder) -> str:
    """A sentence on how to go on from the weights of a run with other data; "" if it has none yet."""
    if not (present(folder.weights) or any(folder.checkpoints.glob("*.pt"))):
        return ""
    return f" To train its weights on other data: another --run-dir, with --set train.init_from={folder.path}"


def refuse_untrained(folder: RunFolder, found: Sequence[Change]) -> None:
    """Raise RecipeError for changes that a run without a batch left to train would not follow.

    Its numbers are those of the settings that it was trained with.
    """
    unseen = (*WATCHING, "train.duration")
    if refused := [change for change in found if not (change.under(unseen) or change.of_place)]:
        problems = [change.problem(f"{folder.path} was trained, which is complete") for change in refused]
        way_out = (
            "a complete run is not trained again with other settings. Use another --run-dir, or remove "
            f"{folder.path} to start over; a longer --set train.duration=... continues it with the new ones"
        )
        raise RecipeError([*problems, Problem(way_out)])


def refuse_other_run(folder: RunFolder, recipe) -> None:
    """Raise RecipeError if the run in the folder may not continue with the recipe, or is complete with other settings.

    As `zoo train` refuses it, before the data are looked at.
    """
    found = check_continues(folder, recipe)
    if folder.read_summary() is not None and not any(change.key == "train.duration" for change in found):
        refuse_untrained(folder, found)


def damage(folder: RunFolder, summary: dict) -> str | None:
    """Why the weights or the tokenizer of a complete run are not those that training wrote, None if they are.

    Reads the weights whole, 1 to 2 GB a second.
    """
    expected = summary.get("sha256")
    found = sha256(folder.weights)
    if found != expected:
        return f"{folder.weights}: damaged or replaced: SHA-256 is {found[:16]}..., {_said(folder, expected)}"
    try:
        described = recorded_digest(folder.path)
        check_tokenizer(folder.path)
    except (LoadError, DataError) as error:
        return str(error)
    if described != expected:
        return f"{folder.model}: not of these weights: SHA-256 is {found[:16]}..., it says {str(described)[:16]}..."
    return None


def _said(folder: RunFolder, expected: object) -> str:
    return f"{folder.summary.name} says {str(expected)[:16]}..." if expected else f"{folder.summary.name} has none"


def check_data(
    folder: RunFolder, prepared: PreparedData, record: DataRecord, what: str, found: Sequence[Change] = ()
) -> list[str]:
    """Compare prepared data, whose record is given, with those the run was trained on; returns sentences to tell.

    Raises RecipeError with a line for each source and for the tokenizer if they differ.  A run of an earlier version
    has no record: its tokenizer must then be bytes, or be in the run folder, because token numbers would mean another
    text to the same weights.  what: the run is about to do, for the message.  found: changes of the recipe.
    """
    if not present(folder.data):
        return _check_without_record(folder, prepared, what)
    if other := record.differences(DataRecord.read(folder.data), folder.path):
        _refuse(folder, [*_other_places(folder, found), *other], what)
    return []


def prepare_again(folder: RunFolder, recipe, found: Sequence[Change]) -> PreparedData:
    """Prepare the recipe's data.  A DataError becomes a RecipeError that says which places of the data changed, if any.

    found: changes of the recipe.
    """
    from zoo.data import prepare_for

    try:
        return prepare_for(recipe)
    except DataError as error:
        if places := _other_places(folder, found):
            raise RecipeError([*places, Problem(str(error))]) from error
        raise


def _other_places(folder: RunFolder, found: Sequence[Change]) -> list[Problem]:
    return [change.problem(f"{folder.path} was started") for change in found if change.of_place]


def check_data_of_complete(folder: RunFolder, recipe, found: Sequence[Change], say: Say) -> None:
    """As `check_data` for a complete run, without preparing data whose files are untouched.

    Data that are no longer there do not make the run incomplete; `say` gets a sentence about them.  Raises RecipeError
    if they are missing at another place that the recipe names now.
    """
    try:
        if present(folder.data) and DataRecord.read(folder.data).is_of(recipe.data):
            return
        prepared = prepare_again(folder, recipe, found)
    except (DataError, OSError) as error:
        say(f"the data cannot be compared with those of the run: {error}")
        return
    for sentence in check_data(folder, prepared, DataRecord.of(prepared), "is complete", found):
        say(sentence)


def _refuse(folder: RunFolder, problems: Sequence[Problem], what: str) -> None:
    """Raise RecipeError with the problems and the ways out, if there are any.  what: the run would do."""
    if problems:
        way_out = (
            f"{folder.path} {what} only with the data and tokenizer it was trained with: bring those back, use another "
            f"--run-dir for a run on the new ones, or remove {folder.path} to start over.{new_run(folder)}"
        )
        raise RecipeError([*problems, Problem(way_out)])


def _check_without_record(folder: RunFolder, prepared: PreparedData, what: str) -> list[str]:
    note = f"{folder.path} has no {folder.data.name}, the record of its data (earlier versions wrote none): "
    config, tokenizer = prepared.config.resolved_tokenizer(), prepared.tokenizer
    if config is None or tokenizer is None or isinstance(tokenizer, Bytes):
        return [note + "whether they are the same is not checked"]
    if not present(folder.tokenizer):
        raise ZooError(
            f"{note}whether the {config.kind} tokenizer is the same cannot be known. Copy the tokenizer.json and "
            f"tokenizer_config.json that it was trained with (data_cache/bpe-*/ holds learnt ones) into {folder.path}, "
            f"or use another --run-dir"
        )
    kept = load_huggingface(HuggingFaceTokenizer(kind="huggingface", path=str(folder.path)))
    other = tokenizer_record(config.kind, tokenizer).other_than(tokenizer_record(config.kind, kept))
    if other:
        why = f"not the tokenizer in {folder.path}: other {', '.join(other)}"
        _refuse(folder, [Problem(why, key="data.tokenizer")], what)
    return [note + "the tokenizer is the same, whether the text is is not checked"]


def write_record(path: Path, record: DataRecord) -> None:
    """Write data.json."""
    write_sealed_json(path, record.model_dump(mode="json"))
