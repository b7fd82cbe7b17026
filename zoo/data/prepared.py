"""What preparation returns: where the rows of each split lie, and what they hold."""

from dataclasses import dataclass
from pathlib import Path

from zoo.data.config import DataConfig, Source
from zoo.data.packing import Counts, Tokenizer


@dataclass(frozen=True)
class RowStream:
    """The rows of one source in one split: an MDS folder, or remote shards kept in that folder.

    choose: how many of the rows are read, always the same ones; None: all of them, or as `proportion` says.
    """

    folder: Path
    source: Source
    counts: Counts
    remote: str | None = None
    proportion: float | None = None
    choose: int | None = None
    ours: bool = True  # made by `prepare`, so that it can be removed and made again

    @property
    def remedy(self) -> str:
        """What to do when a shard is damaged."""
        if self.ours:
            return f"remove the folder {self.folder.parent} and prepare again"
        return "fetch the shard again from where the data came, or make the shards anew"


@dataclass(frozen=True)
class PreparedData:
    """Rows ready for `loader`.  `tokenizer` is None where rows are plain numbers; `key` names all the content."""

    config: DataConfig
    seq_len: int
    vocab_size: int
    key: str
    tokenizer: Tokenizer | None
    streams: dict[str, tuple[RowStream, ...]]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()  # what of the sources was not read, or may not be as meant

    def counts(self, split: str) -> Counts:
        """Return documents, bytes, tokens and rows of a split."""
        return sum((stream.counts for stream in self.streams[split]), start=Counts())

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return self.counts(split).rows

    @property
    def max_documents(self) -> int | None:
        """The most documents in one row of any split; None where it is not known (ready shards of several a row)."""
        return sum(map(self.counts, self.streams), start=Counts()).max_documents

    @property
    def bytes_per_token(self) -> dict[str, float | None]:
        """Bytes a token stands for in each split; None where it is not known (rows of numbers, remote shards).

        A document's end counts as one byte, so the byte tokenizer has 1.0, and others are measured on the same bytes.
        """
        return {split: self.counts(split).bytes_per_token for split in self.streams}

    @property
    def report(self) -> str:
        """Documents, tokens, bytes and rows of each source and split, as a table in plain text."""
        head = ("source", "split", "documents", "tokens", "bytes", "rows")
        lines: list[tuple[str, ...]] = [head]
        for split, streams in self.streams.items():
            lines += [(stream.source.kind, split, *_numbers(stream.counts)) for stream in streams]
            if len(streams) > 1:
                lines.append(("all", split, *_numbers(self.counts(split))))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = [
            "  ".join([*(c.ljust(w) for c, w in zip(line[:2], widths, strict=False)), *_right(line, widths)])
            for line in lines
        ]
        return "\n".join([*(line.rstrip() for line in table), "", *self._notes()])

    def _notes(self) -> list[str]:
        how = self.tokenizer_name
        folders = dict.fromkeys(s.folder.parent if s.ours else s.folder for ss in self.streams.values() for s in ss)
        took = f"prepared in {self.seconds:.1f} s" if self.seconds else "found in the cache"
        rows = f"rows of {self.seq_len:,} tokens; {how}; {took}"
        return [rows, *(f"  {folder}" for folder in folders), *self._mixture(), *self.notes]

    def _mixture(self) -> list[str]:
        """Of which rows the validation is, where it leaves some out to have the proportions of training."""
        chosen = [s for s in self.streams["validation"] if s.choose is not None]
        shares = [f"{s.choose:,} of {s.counts.rows:,} rows of source {s.source.kind}" for s in chosen]
        return [f"validation in the proportions of training: {', '.join(shares)}"] if shares else []

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer in words."""
        config = self.config.resolved_tokenizer()
        if config is None or self.tokenizer is None:
            return "no tokenizer (rows are numbers)"
        return f"{config.kind} tokenizer of {self.tokenizer.vocab_size:,} tokens"


def _numbers(counts: Counts) -> tuple[str, ...]:
    size = "?" if counts.bytes is None else f"{counts.bytes:,}"
    return f"{counts.documents:,}", f"{counts.tokens:,}", size, f"{counts.rows:,}"


def _right(line: tuple[str, ...], widths: list[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
