"""Building the folder of one prepared source: pieces tokenised side by side, written part by part, resumable.

    NAME.building/train/part-00003/shard.00000.mds.zstd     rows of piece 3
    NAME.building/done/00003.json                           written last: piece 3 is complete and on disk
    NAME/{train,validation}/index.json, NAME/counts.json    the finished folder, by one rename

A run that finds NAME.building redoes only the pieces that are not marked as done.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError, create_model

from zoo.data.config import Source, Synthetic
from zoo.data.errors import DataError
from zoo.data.packing import SPLITS, Counts, Tokenizer, pack, token_type
from zoo.data.pool import Numbered, each
from zoo.data.progress import Progress
from zoo.data.shards import merge_indexes, write_shards
from zoo.data.sources import Piece, pieces
from zoo.data.synthetic import make_rows
from zoo.errors import first_mistake
from zoo.files import make_folder, present, read_json, sync, write_sealed_json

SYNTHETIC_ROWS_A_PART = 1 << 14


def _required(types: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without a default, as `create_model` reads them."""
    return {name: (kind, ...) for name, kind in types.items()}


_SplitCounts = create_model("_SplitCounts", **_required({field.name: field.type for field in fields(Counts)}))
_CountsFile = create_model("_CountsFile", **_required(dict.fromkeys(SPLITS, _SplitCounts)))


class Builder:
    """Writes parts into NAME.building, and renames it to NAME when all are there."""

    def __init__(self, folder: Path, columns: dict[str, str]):
        self._final, self._columns = folder, columns
        self._building = folder.with_name(f"{folder.name}.building")
        self._done = self._building / "done"
        self.scratch = self._building / "tokens"
        for made in (self._building, self._done, *(self._building / split for split in SPLITS)):
            make_folder(made, DataError)
        shutil.rmtree(self.scratch, ignore_errors=True)
        make_folder(self.scratch, DataError)  # which refuses a symbolic link

    def counts(self, part: int) -> dict[str, Counts] | None:
        """Return what a finished part holds, None if it is not finished."""
        mark = self._done / f"{part:05}.json"
        return read_counts(mark) if mark.exists() else None

    def write(self, part: int, rows: Mapping[str, Iterable[dict]], counts: Mapping[str, Counts]) -> None:
        """Write one part, both splits; a part left half written by an earlier run is written again."""
        for split in SPLITS:
            folder = self._building / split / f"part-{part:05}"
            shutil.rmtree(folder, ignore_errors=True)
            counts[split].rows = write_shards(folder, self._columns, rows[split])
            sync(folder.parent)
        write_sealed_json(self._done / f"{part:05}.json", {split: asdict(counts[split]) for split in SPLITS})

    def finish(self, notes: Sequence[str] = ()) -> None:
        """Index the parts, total their counts, and put the folder in its place."""
        total = {split: Counts() for split in SPLITS}
        for mark in sorted(self._done.iterdir()):
            part = read_counts(mark)
            total = {split: total[split] + part[split] for split in SPLITS}
        for split in SPLITS:
            (self._building / split).mkdir(exist_ok=True)
            merge_indexes(self._building / split)
        write_sealed_json(self._building / "counts.json", {split: asdict(total[split]) for split in SPLITS})
        if notes:
            write_sealed_json(self._building / "notes.json", {"notes": list(notes)})
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.rmtree(self._done)
        self._building.rename(self._final)
        sync(self._final.parent)


def read_counts(path: Path) -> dict[str, Counts]:
    """Read what `Builder` wrote: the counts of each split.  Raises DataError that says what to do, if it is damaged."""
    prepared = path.parent if path.name == "counts.json" else path.parents[1]
    remedy = f"remove the folder {prepared} and prepare again"
    value = read_json(path, remedy, DataError)
    try:
        found = _CountsFile.model_validate(value, strict=True)
    except ValidationError as error:
        why = first_mistake(error)
        raise DataError(f"{path}: damaged, or of another version of the zoo: {why}; {remedy}") from error
    return {split: Counts(**getattr(found, split).model_dump()) for split in SPLITS}


def read_notes(folder: Path) -> list[str]:
    """Read the notes that a finished folder keeps about its source."""
    path = folder / "notes.json"
    if not present(path, DataError):
        return []
    found = read_json(path, f"remove the folder {folder} and prepare again", DataError).get("notes")
    return [str(note) for note in found] if isinstance(found, list) else []


def build_text(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    progress: Progress,
    *,
    seq_len: int,
    fraction: float,
    workers: int,
    piece_bytes: int,
    notes: Sequence[str] = (),
) -> None:
    """Make `folder` from a source of text; `fraction` of the documents goes to validation; `notes` are kept in it."""
    tokens = f"ndarray:{token_type(tokenizer.vocab_size).__name__}"
    builder = Builder(folder, {"tokens": tokens, "starts": "ndarray:uint32"})
    todo = _unfinished(builder, pieces(source, piece_bytes, fraction), progress)
    work = partial(pack, tokenizer=tokenizer, fraction=fraction)
    for part, packed in each(work, todo, workers, builder.scratch):
        counts = {split: replace(p.counts, max_documents=p.max_documents(seq_len)) for split, p in packed.items()}
        builder.write(part, {split: p.rows(seq_len) for split, p in packed.items()}, counts)
        shutil.rmtree(builder.scratch / str(part))
        progress.advance(_bytes(counts))
    builder.finish(notes)


def build_synthetic(folder: Path, source: Synthetic, *, length: int, seed: int) -> None:
    """Make `folder` from a synthetic task, both splits."""
    columns = {"tokens": f"ndarray:{token_type(source.vocab_size).__name__}", "labels": "ndarray:int32"}
    builder = Builder(folder, columns)
    rows = make_rows(source, length, seed)
    for part in range(1 + (source.rows + source.validation_rows) // SYNTHETIC_ROWS_A_PART):
        splits: dict[str, list[dict]] = {split: [] for split in SPLITS}
        for split, tokens, labels in islice(rows, SYNTHETIC_ROWS_A_PART):
            row = {"tokens": tokens.astype(token_type(source.vocab_size)), "labels": labels.astype(np.int32)}
            splits[split].append(row)
        # Two documents at most: a row and, where the model's rows are longer, its padding.
        counts = {split: Counts(len(r), None, len(r) * length, max_documents=2) for split, r in splits.items()}
        builder.write(part, splits, counts)
    builder.finish()


def _bytes(counts: Mapping[str, Counts]) -> int:
    return sum(split.bytes or 0 for split in counts.values())


def _unfinished(builder: Builder, all_pieces: Iterable[Piece], progress: Progress) -> Numbered:
    for part, piece in enumerate(all_pieces):
        counts = builder.counts(part)
        if counts is None:
            yield part, piece
        else:
            progress.advance(_bytes(counts))
