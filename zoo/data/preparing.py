"""Preparing the data of a recipe: every source becomes a folder of rows, made once and kept by its content."""

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import xxhash

from zoo.data.build import build_synthetic, build_text, read_counts, read_notes
from zoo.data.config import BpeTokenizer, ByteTokenizer, DataConfig, HuggingFaceTokenizer, Mds, Source, Synthetic
from zoo.data.errors import DataError
from zoo.data.files import local_path
from zoo.data.mds import open_mds
from zoo.data.packing import COUNTED_BYTES, SPLITS, Tokenizer, count_words
from zoo.data.pool import each
from zoo.data.prepared import PreparedData, RowStream
from zoo.data.progress import Progress
from zoo.data.sources import (
    Piece,
    Texts,
    cut_notes,
    fingerprint,
    notes,
    pieces,
    separator_notes,
    total_bytes,
    validation_cut,
)
from zoo.data.tokenizers import Bytes, Subwords, WordCounts, check_files, learn_bpe, load_huggingface, own_tokenizer
from zoo.data.vocabulary import check_numbers
from zoo.files import make_folder, present, read_json, write_sealed_json
from zoo.processes import cores
from zoo.terminal import err

FORMAT = 2  # part of every cache key: raise it when the same configuration makes other rows, or other counts
BPE_LEARNING = 3  # part of the key of a learnt bpe: raise it when the same text gives other merges
BUILDING = re.compile(r"[a-z-]+-[0-9a-f]{16}\.building")  # nothing else is removed: the cache may be any folder
CHECKSUMS = "checksums.json"  # of a tokenizer's files
PIECE_BYTES = 1 << 25
ABANDONED_S = 7 * 24 * 3600  # a preparation that was cut short and not taken up for so long will not be
MORE = (
    "give more documents (`separator` cuts a text file into several), change validation_fraction, "
    "or name a validation_source"
)


def prepare(
    data: DataConfig,
    *,
    max_seq_len: int,
    vocab_size: int,
    seed: int,
    cache_dir: str | Path | None = None,
    quiet: bool = False,
    piece_bytes: int = PIECE_BYTES,
) -> PreparedData:
    """Make (or find) the rows that `data` describes, for a model of `max_seq_len` and `vocab_size`.

    Every process of a run may call it: one works, the others wait.  A killed call is continued by the next one.
    Rows are kept by the hash of what decides them: the source's configuration and fingerprint (`sources.fingerprint`),
    the tokenizer, seq_len, the held-out fraction and `piece_bytes`; for synthetic sources the seed.
    Raises DataError for sources that are missing, empty, not text or too small, and for what does not fit the model.
    """
    problems = data.problems(vocab_size=vocab_size, max_seq_len=max_seq_len)
    if problems:
        raise DataError("\n".join(f"data.{'.'.join(map(str, key))}: {message}" for key, message in problems))
    root = local_path(cache_dir or data.cache_dir or os.environ.get("ZOO_DATA_CACHE") or "data_cache").absolute()
    work = _Preparation(data, data.seq_len or max_seq_len, seed, root, quiet, piece_bytes)
    try:
        prepared = work.run(vocab_size)
        work.remove_abandoned()  # last: what this call could go on with is finished by now
        return prepared
    except OSError as error:
        path = error.filename
        if isinstance(path, str) and not Path(path).is_relative_to(root):  # a file of a source
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        raise DataError(f"data cache {root}: {error}") from error


class _Preparation:
    """One call of `prepare`."""

    def __init__(self, data: DataConfig, seq_len: int, seed: int, root: Path, quiet: bool, piece_bytes: int):
        self.data, self.seq_len, self.seed, self.root, self.quiet = data, seq_len, seed, root, quiet
        self.piece_bytes = piece_bytes
        self.fraction = 0.0 if data.validation_source else data.validation_fraction
        self.seconds = 0.0
        self.notes: list[str] = []
        self._separators_checked: dict[str, list[str]] = {}

    def run(self, vocab_size: int) -> PreparedData:
        tokenizer = self.tokenizer()
        if tokenizer and tokenizer.vocab_size > vocab_size:
            found = f"the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size is {vocab_size}"
            raise DataError(f"data.tokenizer: {found}; raise model.vocab_size to at least {tokenizer.vocab_size}")
        for source in (*self.data.streams(), *filter(None, (self.data.validation_source,))):
            if not source.holds_tokens:
                self.notes += notes(source)  # what is missing is said before hours of work on another source
        made = [self.streams(s, tokenizer, vocab_size, self.fraction) for s in self.data.streams()]
        train = [(key, replace(splits["train"], proportion=splits["train"].source.proportion)) for key, splits in made]
        held = [(key, splits["validation"]) for key, splits in made if "validation" in splits]
        if self.data.validation_source:
            key, splits = self.streams(self.data.validation_source, tokenizer, vocab_size, 1.0)
            held = [(key, splits["validation"])]
        elif not self.fraction:
            held = []
        _check_filled(self.data, train, held)
        keep = {"train": train, "validation": _in_proportion([(key, s) for key, s in held if s.counts.rows])}
        names = {split: [(key, s.proportion) for key, s in streams] for split, streams in keep.items()}
        return PreparedData(
            config=self.data,
            seq_len=self.seq_len,
            vocab_size=vocab_size,
            key=digest([names, self.seq_len]),
            tokenizer=tokenizer,
            streams={split: tuple(s for _, s in streams) for split, streams in keep.items()},
            seconds=self.seconds,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def tokenizer(self) -> Tokenizer | None:
        match self.data.resolved_tokenizer():
            case ByteTokenizer():
                return Bytes()
            case HuggingFaceTokenizer() as config:
                tokenizer = load_huggingface(config)
                check_numbers(tokenizer.text, f"tokenizer {config.path}: its tokenizer.json")
                return tokenizer
            case BpeTokenizer() as config:
                return self._bpe(config)
            case None:
                return None
            case config:  # of another package
                return own_tokenizer(config)

    def _bpe(self, config: BpeTokenizer) -> Tokenizer:
        sources = self.data.text_streams()
        inputs = [(_settings(s), s.proportion, fingerprint(s)) for s in sources]
        path = self.root / f"bpe-{digest([FORMAT, BPE_LEARNING, config.model_dump(), inputs, self.fraction])}"
        with self.locked(path):
            if not path.is_dir():
                self.say(f"training the bpe tokenizer ({config.vocab_size:,} tokens)")
                for source in sources:
                    self.check_separators(source)
                with self.timed():
                    try:
                        _save(learn_bpe(config, self._words(config, sources, building(path))), path)
                    except BaseException:  # the next call cannot use what is there, and may have another text
                        shutil.rmtree(building(path), ignore_errors=True)
                        raise
        remedy = f"remove the folder {path} and prepare again"
        if present(path / CHECKSUMS, DataError):  # caches of earlier versions lack it
            check_files(path, read_json(path / CHECKSUMS, remedy, DataError).get("files"), remedy)
        return load_huggingface(HuggingFaceTokenizer(kind="huggingface", path=str(path)))

    def _words(self, config: BpeTokenizer, sources: list[Source], folder: Path) -> WordCounts:
        """Count the words of the training documents of each source, up to its share of `training_bytes`."""
        counts, scratch = WordCounts(), folder / "words"
        weights = [source.proportion or 1.0 for source in sources]
        for source, weight in zip(sources, weights, strict=True):
            make_folder(folder, DataError)
            shutil.rmtree(scratch, ignore_errors=True)
            make_folder(scratch, DataError)
            for found in self._words_of(source, config.training_bytes * weight / sum(weights), scratch):
                counts.add(found)
        shutil.rmtree(scratch, ignore_errors=True)
        return counts

    def _words_of(self, source: Source, share: float, scratch: Path) -> Iterator[dict[str, int]]:
        """Yield the words of the pieces of a source, in order, up to `share` bytes."""
        kept: deque[Piece] = deque()
        # Smaller pieces than those of the shards: the last one is counted again, up to what is left of the share.
        size_of_piece, left = min(self.piece_bytes, COUNTED_BYTES), share

        def todo() -> Iterator[tuple[int, Piece]]:
            for number, piece in enumerate(pieces(source, size_of_piece, self.fraction)):
                if isinstance(piece, Texts):  # pieces that are kept must not hold their text in memory
                    make_folder(scratch / str(number), DataError)
                    piece = piece.written(scratch / str(number) / "texts.jsonl")
                kept.append(piece)
                yield number, piece

        # More processes than the share has pieces would read text ahead that is not counted.
        workers = min(self.data.workers or cores(), 1 + int(share // size_of_piece))
        work = partial(count_words, fraction=self.fraction, most=share)
        with closing(each(work, todo(), workers, scratch, in_order=True)) as found:
            for number, (words, size) in found:
                piece, folder = kept.popleft(), scratch / str(number)
                if size >= left:
                    # The first piece was counted up to the whole share already.
                    yield words if left == share else count_words(piece, folder, fraction=self.fraction, most=left)[0]
                    return
                yield words
                left -= size
                shutil.rmtree(folder, ignore_errors=True)

    def streams(
        self, source: Source, tokenizer: Tokenizer | None, vocab_size: int, fraction: float
    ) -> tuple[str, dict[str, RowStream]]:
        """Return the content key of a source, and its rows by split."""
        if isinstance(source, Mds):
            with self.locked(self.root / "mds", alone=True) if source.remote else nullcontext():
                sizes = {"seq_len": self.seq_len, "vocab_size": vocab_size}
                key, stream = open_mds(source, tokenizer, self.root, say=self.say, **sizes)
            return key, {"validation" if fraction == 1.0 else "train": stream}
        key = self._key(source, tokenizer, fraction)
        folder = self.root / f"{source.kind}-{key}"
        with self.locked(folder):
            if not folder.is_dir():
                with self.timed():
                    self._build(folder, source, tokenizer, fraction)
        _refuse_links(folder, *(folder / split for split in SPLITS))
        counts = read_counts(folder / "counts.json")
        self.notes += read_notes(folder)
        return key, {split: RowStream(folder / split, source, counts[split]) for split in SPLITS}

    def _key(self, source: Source, tokenizer: Tokenizer | None, fraction: float) -> str:
        if isinstance(source, Synthetic):
            return digest([FORMAT, _settings(source), self._seed(source), source.length or self.seq_len])
        assert tokenizer is not None
        inputs = [_settings(source), fingerprint(source), tokenizer.identity, self.seq_len, fraction, self.piece_bytes]
        cut = validation_cut(source, fraction, self.root)
        return digest([FORMAT, *inputs, *(["cut", cut[1]] if cut else [])])

    def _seed(self, source: Synthetic) -> int:
        return self.seed if source.seed is None else source.seed

    def _build(self, folder: Path, source: Source, tokenizer: Tokenizer | None, fraction: float) -> None:
        if isinstance(source, Synthetic):
            self.say(f"making {source.rows + source.validation_rows:,} rows of {source.task}")
            build_synthetic(folder, source, length=source.length or self.seq_len, seed=self._seed(source))
            return
        assert tokenizer is not None
        remarks = self.check_separators(source)
        for note in (*notes(source), *remarks, *cut_notes(source, fraction)):
            self.say(note)
        total = total_bytes(source)
        self.say(f"preparing {source.kind}" + (f" ({total / 1e6:,.1f} MB)" if total else ""))
        workers = self.data.workers or (1 if isinstance(tokenizer, Bytes) else cores())
        sizes: dict[str, Any] = {"seq_len": self.seq_len, "fraction": fraction, "piece_bytes": self.piece_bytes}
        with Progress(source.kind, total, quiet=self.quiet) as progress:
            build_text(folder, source, tokenizer, progress, workers=workers, notes=remarks, **sizes)

    def check_separators(self, source: Source) -> list[str]:
        """`separator_notes` of a source, which reads its files, once."""
        key = digest(_settings(source))
        if key not in self._separators_checked:
            self._separators_checked[key] = separator_notes(source)
        return self._separators_checked[key]

    def say(self, message: str) -> None:
        if not self.quiet:
            err(message)

    @contextmanager
    def timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin

    def remove_abandoned(self) -> None:
        """Remove the `*.building` folders of the cache that no process works on and nothing was added to for a week."""
        for folder in filter(lambda path: BUILDING.fullmatch(path.name), self.root.glob("*.building")):
            # OSError: somebody holds the lock, or the folder is another user's.
            with suppress(OSError, DataError), _lock_file(folder.with_suffix("")).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                touched = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - touched > ABANDONED_S:
                    self.say(f"removing {folder}: cut short more than a week ago")
                    shutil.rmtree(folder)

    @contextmanager
    def locked(self, path: Path, alone: bool = False) -> Iterator[None]:
        """Hold a lock that the system drops when the process dies, so a killed run blocks nobody.

        What is complete is never written again: where the cache is read-only, it is used without a lock.
        alone: `path` names the lock only, and nothing of the cache has to be there.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = _lock_file(path).open("a")
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            if not (alone or path.is_dir()):
                raise DataError(
                    f"data cache {self.root}: cannot be written ({error.strerror}), and {path.name} is not prepared in "
                    "it; set data.cache_dir or ZOO_DATA_CACHE to a folder of your own"
                ) from error
            lock = None
        if lock is None:
            yield
            return
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if os.environ.get("RANK", "0") == "0":  # the others wait for the first of their own run
                    self.say(f"waiting for another process that prepares {path}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lock_file(path: Path) -> Path:
    """The lock of a folder of the cache.  Raises DataError if something else has its name: opening makes the file."""
    lock = path.with_name(f".{path.name}.lock")
    if lock.is_symlink():
        raise DataError(f"{lock}: a symbolic link; nothing is written through a link: remove it")
    present(lock, DataError)
    return lock


def _refuse_links(*folders: Path) -> None:
    """Shards are decompressed in a folder of the cache, which may have come from somebody else."""
    for folder in folders:
        if folder.is_symlink():
            raise DataError(f"{folder}: a symbolic link; nothing is written through a link: remove it")


def _settings(source: Source) -> dict[str, Any]:
    """What names the rows of a source. Later fields are left out at their defaults, so that rows made before stay."""
    later = {"extensions": None, "on_error": "fail"}
    found = source.model_dump(mode="json", exclude={"proportion"})
    return {name: value for name, value in found.items() if name not in later or value != later[name]}


def digest(value: Any) -> str:
    """A hash of a value that JSON can hold, equal for equal content."""
    return xxhash.xxh64(json.dumps(value, sort_keys=True).encode()).hexdigest()


def building(path: Path) -> Path:
    """Where a folder of the cache is made before it is renamed to `path`."""
    return path.with_name(f"{path.name}.building")


def _save(tokenizer: Subwords, path: Path) -> None:
    temporary = building(path)
    make_folder(temporary, DataError)
    write_sealed_json(temporary / CHECKSUMS, {"files": tokenizer.save(temporary)})
    temporary.rename(path)


def _in_proportion(held: list[tuple[str, RowStream]]) -> list[tuple[str, RowStream]]:
    """Choose as many held-out rows as there are in the proportions of training, at least one of each source.

    Without proportions the held-out rows have them already: each source counts by its size.
    """
    weights = [stream.source.proportion for _, stream in held if stream.source.proportion is not None]
    if len(held) < 2 or len(weights) < len(held):
        return held
    unit = min(stream.counts.rows / weight for (_, stream), weight in zip(held, weights, strict=True))
    return [
        (key, replace(stream, choose=min(stream.counts.rows, max(1, round(unit * weight)))))
        for (key, stream), weight in zip(held, weights, strict=True)
    ]


def _check_filled(data: DataConfig, train: list[tuple[str, RowStream]], held: list[tuple[str, RowStream]]) -> None:
    wants_validation = data.validation_source or data.validation_fraction
    empty = [stream for _, stream in train if not stream.counts.rows]
    for stream in empty:
        n = sum(s.counts.documents for _, s in chain(train, held) if s.source == stream.source)
        what = "no text" if not n else f"all of its {n} documents were held out for validation"
        raise DataError(f"source {stream.source.kind}: no training rows: {what}; {MORE}")
    if wants_validation and not sum(stream.counts.rows for _, stream in held):
        n = sum(stream.counts.documents for _, stream in train)
        found = f"none of {n} documents was held out (validation_fraction {data.validation_fraction})"
        raise DataError(f"data: no validation rows: {found}; {MORE}")
