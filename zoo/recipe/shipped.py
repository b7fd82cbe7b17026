"""The recipes that come with the package, by names such as `zoo:tiny/full`. No torch.

They lie in recipes/ of the repository, and in zoo/recipes of an installed package; zoo/recipes of a checkout is a link.
A name may stand wherever the path of a recipe may: on the command line, after `extends`, and in a study.
"""

import os
import re
from functools import cache
from pathlib import Path

from zoo.errors import did_you_mean, shorten

PREFIX = "zoo:"
FOLDER = Path(__file__).parents[1] / "recipes"


def is_name(path: str | os.PathLike) -> bool:
    """Whether a path is the name of a recipe of the package, `zoo:...`."""
    return os.fspath(path).startswith(PREFIX)


def names() -> list[str]:
    """Every name, sorted by folder: `zoo:quickstart`, `zoo:tiny/full`, ..."""
    return [PREFIX + name for name in sorted(_files(FOLDER), key=lambda name: (name.count("/"), name))]


@cache
def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}


def find(name: str) -> str | None:
    """The file of a name, as a path relative to the working directory if it is below it; None if there is none."""
    found = _files(FOLDER).get(canonical(name).removeprefix(PREFIX))
    if found is None:
        return None
    path = os.path.realpath(found)
    try:
        relative = os.path.relpath(path)
    except OSError:  # the working directory was removed
        return path
    return path if relative.startswith(os.pardir) else relative


def canonical(name: str) -> str:
    """The name as it is listed: `zoo:tiny/full`, with the prefix and without the extension."""
    return PREFIX + _bare(name.removeprefix(PREFIX))


def unknown(name: str) -> str:
    """The message for a name that no recipe of the package has."""
    near = did_you_mean(_bare(name), _with_words_of(name) or names())
    return f"the package has no recipe {shorten(name)}; zoo recipes lists them.{near}"


def _with_words_of(name: str) -> list[str]:
    """The names with the same words in another order: runs of zoo:340m/full are called full_340m."""
    words = sorted(re.split("[/_]", _bare(name.removeprefix(PREFIX)).casefold()))
    return [one for one in names() if sorted(re.split("[/_]", one.removeprefix(PREFIX).casefold())) == words]


def meant(path: str) -> str | None:
    """The name of the package's recipe that a path of a checkout, such as recipes/tiny/full.yaml, stands for."""
    parts = _bare(os.path.normpath(path)).split(os.sep)
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((PREFIX + tail for tail in tails if tail in _files(FOLDER)), None)


def _bare(name: str) -> str:
    return name.removesuffix(".yaml").removesuffix(".yml")
