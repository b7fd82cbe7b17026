"""The command that installs what an extra of the package adds, without replacing torch.

`pip install '.[extra]'` resolves the whole package anew, and one of its requirements pins an older torch.  The
requirements of the extra alone, with the versions of constraints.txt, leave what is installed as it is.
"""

import os
import shlex
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "attention-zoo"
CONSTRAINTS = Path(__file__).parent / "constraints.txt"
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"  # of a checkout


def install_command(extra: str) -> str:
    """The command for the extra, such as `docs`, in the environment of the running interpreter.

    pip where the environment has it, else uv; that of a checkout reads the extra's requirements from pyproject.toml,
    an installed package from its metadata.
    """
    return installing(requirements(extra))


def installing(wanted: list[str]) -> str:
    """The command that installs these requirements into the environment of the running interpreter."""
    python = _python()
    start = [python, "-m", "pip", "install"] if find_spec("pip") else ["uv", "pip", "install", "--python", python]
    constraints = ["-c", _near(CONSTRAINTS)] if CONSTRAINTS.is_file() else []
    return shlex.join([*start, *constraints, *wanted])


def requirements(extra: str) -> list[str]:
    """What the extra requires.  Empty if the package names no such extra."""
    if PYPROJECT.is_file():
        with PYPROJECT.open("rb") as file:
            project = tomllib.load(file).get("project", {})
        if project.get("name") == DISTRIBUTION:
            return project["optional-dependencies"].get(extra, [])
    try:
        found = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    split = (line.partition(";") for line in found)
    return [name.strip() for name, _, marker in split if marker.strip() == f'extra == "{extra}"']


def _python() -> str:
    """`python` if that is the running interpreter, else its path."""
    on_path = shutil.which("python")
    if on_path and os.path.abspath(on_path) == os.path.abspath(sys.executable):
        return "python"
    return _near(sys.executable, resolve=False)


def _near(path: str | os.PathLike, resolve: bool = True) -> str:
    """A path relative to the working directory if it is below it, else absolute."""
    full = os.path.realpath(path) if resolve else os.path.abspath(path)
    relative = os.path.relpath(full)
    return full if relative.startswith(os.pardir) else relative
