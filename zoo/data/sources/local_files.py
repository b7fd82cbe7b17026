"""What reads local files that a recipe names by `paths`."""

from pathlib import Path
from typing import TypeVar

from zoo.data.config import Files
from zoo.data.files import find_files, survey
from zoo.data.sources.base import Reader

Paths = TypeVar("Paths", bound=Files)


class FilesReader(Reader[Paths]):
    """Files, and those of folders and globs that the kind reads."""

    def files(self) -> list[Path]:
        return find_files(self.source)

    def notes(self) -> list[str]:
        """The files that folders hold and the kind does not read, by reason."""
        note = survey(self.source).note
        return [f"source {self.source.kind}: {note}"] if note else []
