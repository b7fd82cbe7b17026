"""Paths of a `data` section that do not depend on the working directory, for the resolved recipe of a run. No torch."""

import os
from pathlib import Path
from typing import TypeVar

from zoo.data.config import DataConfig, Source, TokenizerConfig

AnyPart = TypeVar("AnyPart", Source, TokenizerConfig)


def absolute(path: str) -> str:
    """The path from the root on; a path of somebody's home folder, `~/...`, stays."""
    return path if path.startswith("~") or "\0" in path else os.path.abspath(path)


def _if_local(path: str) -> str:
    """Absolute if there is such a file or folder; otherwise it is a name on the Hub."""
    try:
        return absolute(path) if Path(path).exists() else path
    except (OSError, ValueError):
        return path


def with_absolute_paths(data: DataConfig) -> DataConfig:
    """The same section with absolute paths of files, folders, globs and the cache."""
    update = {
        "source": data.source and _with_places(data.source),
        "sources": data.sources and [_with_places(source) for source in data.sources],
        "validation_source": data.validation_source and _with_places(data.validation_source),
        "tokenizer": data.tokenizer and _with_places(data.tokenizer),
        "cache_dir": data.cache_dir and absolute(data.cache_dir),
    }
    return data.model_copy(update=update)


def _with_places(part: AnyPart) -> AnyPart:
    """A source or a tokenizer with absolute paths in the fields that it says hold some."""
    update = {}
    for place, names in ((absolute, part.path_fields), (_if_local, part.path_or_name_fields)):
        for name in names:
            value = getattr(part, name)
            if value is not None:
                update[name] = [place(path) for path in value] if isinstance(value, list) else place(value)
    return part.model_copy(update=update) if update else part
