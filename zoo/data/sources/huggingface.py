"""The source `huggingface`: a dataset that the `datasets` library reads."""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from zoo.data.config import HuggingFaceDataset
from zoo.data.errors import DataError
from zoo.data.files import check_head, files_below, is_hidden, local_path
from zoo.data.sources.base import Reader
from zoo.data.sources.pieces import Piece, read_pieces

# What load_dataset takes for a reader of whatever lies in the working directory, and not for a dataset's name.
READERS = (
    *("arrow", "csv", "generator", "json", "pandas", "parquet", "spark", "sql", "text", "webdataset", "xml", "cache"),
    *("audiofolder", "hdf5", "imagefolder", "lance", "niftifolder", "pdffolder", "videofolder"),
)


class HubReader(Reader[HuggingFaceDataset]):
    """A dataset of the Hub, or one in a local folder."""

    def files(self) -> list[Path]:
        return files_below(local_path(self.source.path))

    def pieces(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        path = self.source.path
        numbered = enumerate(islice(_texts(self.source), self.source.max_documents))
        yield from read_pieces(numbered, f"dataset {path}", path, piece_bytes)

    def total_bytes(self) -> None:
        return None

    def fingerprint(self) -> list:
        """Nothing for a dataset of the Hub, whose configuration names it: prepared rows need no network."""
        return super().fingerprint() if local_path(self.source.path).is_dir() else []


def _texts(source: HuggingFaceDataset) -> Iterator[object]:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = local_path(source.path).absolute()
    if not path.is_dir() and source.path in READERS:
        raise DataError(
            f"dataset {source.path!r}: the name of a reader of the datasets library, which would read the working "
            "directory (pandas: pickles, which run code); name a dataset, or a folder of data files"
        )
    for file in files_below(path):
        if not is_hidden(file.relative_to(path)):
            check_head(file)
    try:
        dataset = datasets.load_dataset(
            str(path) if path.is_dir() else source.path,
            source.config_name,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
    except (
        Exception
    ) as error:  # the library's errors have no common base: network, gate, bad name, bad split, bad files
        raise DataError(f"dataset {source.path!r} cannot be loaded: {type(error).__name__}: {error}") from error
    names = dataset.column_names
    if names is not None and source.field not in names:
        raise DataError(f"dataset {source.path!r}: no column {source.field!r}; it has {', '.join(map(repr, names))}")
    try:
        for batch in dataset.iter(batch_size=64):  # documents may be long
            if source.field not in batch:
                found = ", ".join(map(repr, batch))
                raise DataError(f"dataset {source.path!r}: no column {source.field!r}; it has {found}")
            yield from batch[source.field]
    except DataError:
        raise
    except Exception as error:  # as above, in the middle of the data
        raise DataError(f"dataset {source.path!r}: reading failed: {type(error).__name__}: {error}") from error
