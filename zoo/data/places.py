"""Paths of a `data` section that do not depend on the working directory, for the resolved recipe of a run. No torch."""

import os
from pathlib import Path

from zoo.data.config import DataConfig, Files, HuggingFaceDataset, HuggingFaceTokenizer, Mds, Source, TokenizerConfig


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
        "source": data.source and _source(data.source),
        "sources": data.sources and [_source(source) for source in data.sources],
        "validation_source": data.validation_source and _source(data.validation_source),
        "tokenizer": data.tokenizer and _tokenizer(data.tokenizer),
        "cache_dir": data.cache_dir and absolute(data.cache_dir),
    }
    return data.model_copy(update=update)


def _source(source: Source) -> Source:
    if isinstance(source, Files):
        return source.model_copy(update={"paths": [absolute(path) for path in source.paths]})
    if isinstance(source, Mds) and source.local is not None:
        return source.model_copy(update={"local": absolute(source.local)})
    if isinstance(source, HuggingFaceDataset):
        return source.model_copy(update={"path": _if_local(source.path)})
    return source


def _tokenizer(tokenizer: TokenizerConfig) -> TokenizerConfig:
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.model_copy(update={"path": _if_local(tokenizer.path)})
    return tokenizer
