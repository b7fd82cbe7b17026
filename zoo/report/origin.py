"""Where the numbers of a page come from: date, machine, versions, commands, recipes. No torch."""

import datetime
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from zoo import __version__
from zoo.errors import ZooError
from zoo.files import present, read_json
from zoo.report.columns import Column
from zoo.report.html import details, escape

_PACKAGES = ("torch", "mosaicml", "pydantic", "matplotlib")


def origin(columns: Sequence[Column], command: str) -> str:
    """The last section of a page: how to make it again, and what each run and recipe was."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    about = [f"attention-zoo {__version__}", f"Python {platform.python_version()}", *_versions(), platform.platform()]
    return "\n".join(
        [
            "<h2>Where these numbers come from</h2>",
            f"<p>Made on {now} by <code>{escape(command)}</code></p>",
            f"<p class=dim>{escape(', '.join(about))}. Costs are computed from the recipes; losses are read from the "
            "run folders.</p>",
            *_of_columns(columns),
        ]
    )


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue


def _of_columns(columns: Sequence[Column]) -> Iterator[str]:
    for column in columns:
        for one in (column, *column.repeats):
            environment = _environment(one)
            if environment:
                name = one.label if one is column else one.source
                machine = environment.pop("device", None) or "machine not known"
                yield details(f"Machine, versions and command of {name}: {machine}", json.dumps(environment, indent=2))
        if column.recipe is not None:
            yield details(f"Recipe of {column.label}, from {column.source}", column.recipe.dump())


def _environment(column: Column) -> dict[str, Any]:
    """environment.json of a run; {} where there is none, or it is damaged, which the column says elsewhere."""
    if column.run is None or not present(column.run.environment):
        return {}
    try:
        found = read_json(column.run.environment)
    except ZooError:
        return {}
    return {name: value for name, value in found.items() if name != "earlier"}
