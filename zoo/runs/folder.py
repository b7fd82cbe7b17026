"""The run folder: what lies where, and whether a run is finished.

continuing.py says whether a recipe may continue it.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zoo.errors import ZooError
from zoo.files import make_folder, open_to_append, present, read_json, write_sealed_json

LOCK_TRIES, LOCK_WAIT_S = 5, 0.1


class RunFolderError(ZooError):
    """A run folder that cannot be used; the message says which part of it, and what to do."""

    exit_code = 2


class RunFolder:
    """runs/<name>/ and its files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.weights = self.path / "model.safetensors"
        self.model = self.path / "model.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.environment = self.path / "environment.json"
        self.data = self.path / "data.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.summary = self.path / "summary.json"
        self.log = self.path / "log.txt"

    def traces(self) -> list[Path]:
        """Files that only a run that was begun leaves: checkpoints, weights, summary, record of the data, metrics."""
        files = [path for path in (self.summary, self.weights, self.data, self.metrics) if os.path.lexists(path)]
        return [*self.checkpoints.glob("*.pt"), *files]

    def read_summary(self) -> dict | None:
        """summary.json of a finished run, else None."""
        if not (present(self.summary) and present(self.weights)):
            return None
        return read_json(self.summary)

    def write_summary(self, summary: dict) -> None:
        """Write summary.json with its checksum; the run is complete from then on."""
        write_sealed_json(self.summary, summary)

    def _make(self) -> None:
        """Make the folder and those inside it.

        A run folder may be somebody else's: the folder itself may be a symbolic link, but nothing is written through
        one inside it.  Files are replaced, not written over, so a link in the place of a file is harmless.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.path.is_symlink() and not os.path.lexists(self.recipe) and any(self.path.iterdir()):
                where = f"a symbolic link to {os.readlink(self.path)}, which holds files and no run"
                raise RunFolderError(f"{self.path}: {where}; name another folder with --run-dir")
            for folder in (self.checkpoints, self.tensorboard, *(self.path / name for name in ("wandb", "mlruns"))):
                if folder in (self.checkpoints, self.tensorboard) or os.path.lexists(folder):
                    make_folder(folder, RunFolderError)
        except OSError as error:
            why = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
            message = f"cannot be used as a run folder: {why}; name another with --run-dir"
            raise RunFolderError(f"{self.path}: {message}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it: a second process that trains into it is refused instead of mixing files."""
        self._make()
        with open_to_append(self.path / ".lock", RunFolderError) as file:
            if not _taken(file):
                raise self._held()
            yield

    def refuse_if_held(self) -> None:
        """Raise ZooError if another process trains into the folder now.  Nothing is made or held."""
        if is_held(self.path / ".lock"):
            raise self._held()

    def _held(self) -> ZooError:
        return ZooError(f"{self.path}: another process is training into this folder")


def _taken(lock: BinaryIO) -> bool:
    """Whether this process has taken a lock.  `zoo runs`, which tries it, may hold it for an instant."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(LOCK_WAIT_S)
    return False


def is_held(lock: Path) -> bool:
    """Whether another process trains into the folder of this lock."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(descriptor)
