"""A folder that one command writes whole, or not at all: exports, imports and conversions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import ZooError, shorten


@contextmanager
def new_folder(path: Path, error: type[ZooError]) -> Iterator[None]:
    """Make a folder to write into; a failure, or Ctrl-C, removes what was written, and the folder if it is new.

    Raises `error` if the folder has files already, is a symbolic link, or cannot be written.
    """
    is_new = check_new_folder(path, error)
    from safetensors import SafetensorError

    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as reason:
        if path.is_dir():
            for file in list(path.iterdir()):
                file.unlink()
            if is_new:
                path.rmdir()
        if isinstance(reason, OSError | SafetensorError):  # the latter where the disk is full, among others
            raise error(f"{path}: cannot be written: {getattr(reason, 'strerror', None) or reason}") from reason
        raise


def check_new_folder(path: Path, error: type[ZooError]) -> bool:
    """Whether the folder must be made.  Raises `error` if it has files already, or is a symbolic link."""
    if "\0" in str(path):
        raise error(f"{shorten(str(path))}: must be a path; a NUL character cannot be in one")
    try:
        if path.is_symlink():
            raise error(f"{path}: a symbolic link; nothing is written through a link: name a new folder")
        if not path.exists():
            return True
        if path.is_dir() and not any(path.iterdir()):
            return False
    except (OSError, ValueError) as reason:
        problem = getattr(reason, "strerror", None) or reason
        raise error(f"{shorten(str(path))}: cannot be written: {problem}") from reason
    raise error(f"{path}: {'not empty' if path.is_dir() else 'a file'}; name a new folder")
