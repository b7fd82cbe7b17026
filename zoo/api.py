"""`zoo.train`, `zoo.compare` and `zoo.describe`: the commands as functions that return objects.

A recipe is the path of a file, a name such as `zoo:tiny/full`, a mapping with the content of a recipe, or a Recipe.
Torch is imported only by what trains or scores a model.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

from zoo.files import write_text
from zoo.recipe import Recipe, load_recipe
from zoo.runs.handle import Run

RecipeLike = str | os.PathLike | Mapping[str, Any] | Recipe


class Shown(str):
    """Text that a prompt and a notebook show as it is."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self)}</pre>"


class Comparison:
    """What `zoo.compare` found. Printed, it is the table of `zoo compare`; in a notebook, an HTML table.

    facts: everything, as `zoo compare --json` prints it.
    """

    def __init__(self, facts: dict[str, Any]):
        self.facts = facts

    @property
    def columns(self) -> list[dict[str, Any]]:
        """The facts of each recipe or run, in the order they were named; `error` says why one could not be compared."""
        return self.facts["columns"]

    @property
    def verdict(self) -> list[str]:
        """What the comparison shows, in sentences: losses, parameters, caches, FLOPs."""
        return self.facts["verdict"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table: `group`, `label`, and the number of each column under its label; None for none."""
        from zoo.report.rows import rows

        labels = [column["label"] for column in self.columns]
        return [
            {"group": row.group, "label": row.label}
            | {name: value and value.number for name, value in zip(labels, row.values, strict=True)}
            for row in rows(self.facts)
        ]

    def __str__(self) -> str:
        from zoo.report.text import as_text

        return as_text(self.facts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from zoo.report.rows import rows

        head = "".join(f"<th>{escape(column['label'])}</th>" for column in self.columns)
        body = "".join(
            f"<tr><th>{escape(row.group)}</th><th>{escape(row.label)}</th>"
            + "".join(f"<td>{escape(f'{v.text} {v.ratio_text}') if v else ''}</td>" for v in row.values)
            + "</tr>"
            for row in rows(self.facts)
        )
        said = "".join(f"<p><b>{escape(line)}</b></p>" for line in self.verdict)
        return f"{said}<table><thead><tr><th></th><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def describe(source: RecipeLike | Run, overrides: Sequence[str] = ()) -> Shown:
    """What `zoo show` prints of a recipe or a run: layers, parameters, FLOPs, cache.

    overrides: `key.path=value`, as after --set, for a recipe.
    """
    from zoo.report.show import as_text
    from zoo.runs.listing import is_run, sentence

    if not isinstance(source, Mapping | Recipe) and Path(source).is_dir():
        run = Run(source)
        return Shown(as_text(run.recipe, run=sentence(run.path) if is_run(run.path) else None))
    return Shown(as_text(load_recipe(source, overrides)))


def train(recipe: RecipeLike, run_dir: str | os.PathLike | None = None, overrides: Sequence[str] = ()) -> Run:
    """Train a recipe's model, or continue where its run stopped, and return the run.

    run_dir: the run's folder; default runs/ and the recipe's name.  overrides: `key.path=value`, as after --set.
    Progress is shown: a bar in a notebook and on a terminal, lines elsewhere.
    Raises RecipeError or DataError for what the recipe got wrong, ZooError if training failed, Interrupted if stopped.
    """
    loaded = load_recipe(recipe, overrides)
    from zoo.training.run import train as run

    folder = Path(run_dir) if run_dir is not None else Path("runs") / loaded.name
    run(loaded, folder)
    return Run(folder)


def compare(
    sources: Sequence[RecipeLike | Run],
    *,
    overrides: Sequence[str] = (),
    seq_lens: Sequence[int] = (),
    html: str | os.PathLike | None = None,
    maps: bool = True,
    train: str | None = None,
    runs_dir: str | os.PathLike = "runs/compare",
    measure: bool = False,
) -> Comparison:
    """Compare 2 to 10 recipes or runs, as `zoo compare`.

    overrides: as after --set, for every recipe.  seq_lens: lengths in tokens at which costs are stated, or one length.
    html: a file for the self-contained page; maps: with attention maps.
    train: first train each recipe for this duration, such as "200ba", into runs_dir.
    measure: speed and memory on this machine.
    Raises RecipeError if there are not 2 to 10, or none of them can be read.
    """
    from zoo.report.compare import Request, find, write

    if isinstance(sources, str | os.PathLike | Mapping | Recipe):  # one: text is not a list of its characters
        sources = [sources]
    with _as_paths(sources) as paths:
        page = Path(html) if html is not None else None
        asked = Request(
            paths,
            [overrides] if isinstance(overrides, str) else overrides,
            [seq_lens] if isinstance(seq_lens, int) else seq_lens,
            page,
            False,
            maps,
            train,
            Path(runs_dir),
            measure,
            False,
            "zoo.compare in Python",
            {path: f"recipe {i}" for i, path in enumerate(paths, start=1) if not _is_path(sources[i - 1])},
        )
        columns, facts = find(asked)
        write(asked, columns, facts)
    return Comparison(facts)


def _is_path(source: RecipeLike | Run) -> TypeGuard[str | os.PathLike]:
    """Whether a recipe is named by its file, its folder or its name, and not given as its content."""
    return isinstance(source, str | os.PathLike)


@contextmanager
def _as_paths(sources: Sequence[RecipeLike | Run]) -> Iterator[list[str]]:
    """The sources as paths; recipes that are no files are written into a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="zoo-recipes-") as folder:
        paths = []
        for index, source in enumerate(sources):
            if not _is_path(source):
                recipe = load_recipe(source)
                path = Path(folder) / str(index) / f"{recipe.name}.yaml"
                path.parent.mkdir()
                write_text(path, recipe.dump())
                paths.append(str(path))
            else:
                paths.append(os.fspath(source))
        yield paths
