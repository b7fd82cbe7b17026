"""What is compared: a recipe file or a run folder becomes a column; one that fails keeps its place. No torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.data.places import with_absolute_paths
from zoo.errors import ZooError
from zoo.files import present
from zoo.recipe import Recipe, load_recipe
from zoo.runs.folder import RunFolder
from zoo.terminal import one_line

FEWEST, MOST = 2, 10


@dataclass(frozen=True)
class Column:
    """One architecture of a comparison.

    source: what the user named.  label: its heading, unique in the comparison.  error: why there is no recipe (or why
    it could not be trained or measured), None where all went well.  run: the run folder, None for a recipe alone.
    repeats: runs of the same recipe with other seeds, which the column stands for as well (`seeds.grouped`).
    """

    source: str
    label: str
    recipe: Recipe | None = None
    error: str | None = None
    run: RunFolder | None = None
    repeats: tuple["Column", ...] = ()

    @property
    def known_recipe(self) -> Recipe:
        """The recipe, of a column that has one."""
        assert self.recipe is not None, self.label
        return self.recipe

    @property
    def known_run(self) -> RunFolder:
        """The run folder, of a column that is a run."""
        assert self.run is not None, self.label
        return self.run

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs, ascending."""
        return sorted(column.known_recipe.seed for column in (self, *self.repeats))


def load_columns(
    sources: Sequence[str | Path],
    overrides: Sequence[str] = (),
    duration: str | None = None,
    places: Mapping[str, str] | None = None,
) -> list[Column]:
    """Read the recipes and run folders; a column that cannot be read has its reason in `error`.

    overrides: as after --set, for every recipe; a run folder is compared as it was trained and refuses them.
    duration: of --train, for every recipe; run folders are trained already.
    places: what the heading says of a source, where it shares its name with others; default the source itself.
    """
    columns = [_load(str(source), overrides, duration) for source in sources]
    names = Counter(column.label for column in columns)
    labels = [
        column.label
        if names[column.label] == 1
        else f"{column.label} ({one_line((places or {}).get(column.source, column.source))})"
        for column in columns
    ]
    times: Counter[str] = Counter()
    for index, label in enumerate(labels):
        times[label] += 1
        if times[label] > 1:  # the same file twice, to see what a repeat says
            labels[index] = f"{label} #{times[label]}"
    return [replace(column, label=label) for column, label in zip(columns, labels, strict=True)]


def _load(source: str, overrides: Sequence[str], duration: str | None) -> Column:
    path = Path(source)
    try:
        if not path.is_dir():
            recipe = load_recipe(source, with_duration(overrides, duration))
            return Column(source, recipe.name, recipe)
        folder = RunFolder(path)
        if not present(folder.recipe):
            raise ZooError(f"{folder.recipe}: no such file; not a run folder")
        if overrides:
            raise ZooError(f"{source}: a run is compared as it was trained; --set is for recipes")
        return Column(source, one_line(path.name or source), load_recipe(folder.recipe, of_run=True), run=folder)
    except Exception as error:  # a block of another package can raise anything when its fields are checked
        return Column(source, one_line(path.stem or source), error=reason(error))


def reason(error: Exception) -> str:
    """What a column says of what ended it; an error that is not the zoo's own by its type too."""
    return str(error) if isinstance(error, ZooError) else f"{type(error).__name__}: {error}"


def data_read(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's `data` say of the text that is read, with the source and the tokenizer that go unsaid.

    Without what decides only how (workers, cache_dir) and without the length of the rows.
    """
    data = with_absolute_paths(recipe.data)  # that of a run has them already
    found = data.model_dump(mode="json", exclude={"workers", "cache_dir", "seq_len", "sources"})
    streams = [stream.model_dump(mode="json") for stream in data.streams()]
    tokenizer = data.resolved_tokenizer()
    return found | {
        "source": streams[0] if len(streams) == 1 else streams,
        "tokenizer": tokenizer and tokenizer.model_dump(mode="json"),
    }


def with_duration(overrides: Sequence[str], duration: str | None) -> list[str]:
    """The overrides of a recipe that --train trains for `duration`."""
    return [*overrides, *([f"train.duration={duration}"] if duration else [])]
