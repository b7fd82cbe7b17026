"""Rows to batches: a StreamingDataset over prepared rows, and the loader that Composer reads."""

import mmap
import multiprocessing.queues
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from composer.utils import dist
from streaming import StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.shared.memory import SharedMemory
from torch.utils.data import DataLoader

from zoo.data.errors import DataError
from zoo.data.prepared import PreparedData, RowStream
from zoo.data.shards import hash_name, make_ready, read_index, remove_broken
from zoo.data.shared import check_room, let_go, own_number
from zoo.data.short_rows import short_rows_note
from zoo.data.stale import remove_stale
from zoo.data.stored import row_parts
from zoo.data.streams import CheckedStream
from zoo.data.synthetic import IGNORED
from zoo.processes import sheltered, stay_with_parent
from zoo.terminal import err

MOST_OPEN_FILES = 65536


class RowDataset(StreamingDataset):
    """Rows of one split as {"input_ids", "labels", "document_starts"}, each [seq_len].

    labels[t] is the target of position t; -100 on padding and on rows' own ignored places.  The target of the end of a
    document is the first token of the next one.  Padding begins a document.
    With `mixed` the rows come in one fixed mixed order (for validation, where a run may read only the first batches).
    """

    def __init__(self, prepared: PreparedData, split: str, *, mixed: bool, **settings: Any):
        self._rows_of = prepared.streams[split]
        super().__init__(streams=[_stream(s) for s in self._rows_of], **settings)
        self._seq_len, self._vocab_size = prepared.seq_len, prepared.vocab_size
        self._pad = prepared.tokenizer.end_of_document if prepared.tokenizer else 0
        self._order = self._mixed_order() if mixed else None
        self._failure: BaseException | None = None

    def _mixed_order(self) -> np.ndarray:
        """The row read in the place of each: a fixed permutation of the rows that are chosen."""
        chosen = np.unique(self.resample_streams(0)[1])
        order = np.arange(self.num_samples)
        order[chosen] = np.random.default_rng(0).permutation(chosen)
        return order

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, int | np.integer):
            return super().__getitem__(at)
        at = int(at if self._order is None else self._order[at])
        stream = self._rows_of[self.stream_per_shard[self.spanner[at][0]]]
        try:
            sample = super().__getitem__(at)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # a shard that is no shard
            problem = f"{type(error).__name__}: {error}"
            raise DataError(f"{stream.folder}: row {at} cannot be read: {problem}; {stream.remedy}") from error
        return self._row(stream, sample)

    def _row(self, stream: RowStream, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        inputs, labels, starts = row_parts(stream, sample, self._seq_len, self._vocab_size)
        n = len(inputs)
        is_start = np.zeros(self._seq_len, bool)
        is_start[0] = True
        if len(starts) > 1 or starts[0]:
            is_start[starts[starts < n]] = True
        if n < self._seq_len:
            padding = np.full(self._seq_len - n, self._pad, np.int64)
            inputs, labels = np.append(inputs, padding), np.append(labels, np.full_like(padding, IGNORED))
            is_start[n] = True
        return {"input_ids": inputs, "labels": labels, "document_starts": is_start}

    def close(self) -> None:
        """Let go of shared memory now: Streaming 0.13 keeps it, 12 open files a dataset, until the process ends.

        The dataset cannot be read afterwards.  Call it when no worker process of a loader is left.
        """
        parts = [*vars(self).values(), getattr(self._shared_barrier, "_arr", None)]
        parts += [getattr(part, "arr", None) for part in parts]
        for memory in [part if isinstance(part, SharedMemory) else getattr(part, "shm", None) for part in parts]:
            if isinstance(memory, SharedMemory):
                let_go(memory)
        for path in (self._shared_barrier.filelock_path, self._cache_filelock_path):
            Path(path).unlink(missing_ok=True)

    # Streaming 0.13: when a background thread fails (a shard cannot be fetched), iteration waits for the dead thread
    # for ever, or ends early without a word, and other workers wait for the shard.  The rest of the class raises the
    # error instead.

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard; after a failure other processes try for themselves (and fail) and do not wait for this one."""
        try:
            super().prepare_shard(shard_id, blocking)
        except BaseException:
            self._shard_states[shard_id] = _ShardState.LOCAL
            raise

    def _prepare_thread(self, it: Any) -> None:
        self._guarded(super()._prepare_thread, it)

    def _ready_thread(self, it: Any) -> None:
        self._guarded(super()._ready_thread, it)

    def _guarded(self, run: Any, it: Any) -> None:
        try:
            run(it)
        except BaseException as error:
            self._failure = error
            self._event.set()
            it.on_exit()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        try:
            yield from super().__iter__()
        except (RuntimeError, ValueError, OSError) as error:
            self._failure = self._failure or error
        if self._failure is not None:
            named = isinstance(self._failure, DataError)
            problem = str(self._failure) if named else f"{type(self._failure).__name__}: {self._failure}"
            raise DataError(f"a shard cannot be read: {problem}") from self._failure


def loader(
    prepared: PreparedData,
    split: str,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    num_workers: int = 0,
) -> DataSpec:
    """Return batches of `batch_size` rows a device, for Composer.

    Checks every local shard first.  Training drops the last short batch; validation keeps it, and reads all its rows in
    one fixed mixed order (remote shards: in stored order, or the first batch would fetch them all).  Equal arguments
    give equal batches; a resume in the middle of an epoch goes on with the next row, also on another number of devices.
    Raises DataError for missing or damaged shards, and for fewer training rows than one batch over all devices.
    """
    training = split == "train"
    if num_workers:
        _check_sockets()
        _check_open_files(num_workers)
    _check_enough(prepared, split, batch_size)
    _check_shards(prepared.streams[split])
    if dist.get_local_rank() == 0:
        remove_stale()
        check_room(_handed_over(prepared.seq_len, batch_size, num_workers), num_workers)
    try:
        with own_number():
            dataset = RowDataset(
                prepared,
                split,
                mixed=not training and not any(stream.remote for stream in prepared.streams[split]),
                batch_size=batch_size,
                shuffle=shuffle and training,
                shuffle_seed=seed if training else 0,  # every run validates on the same rows
                sampling_method="balanced" if training else "fixed",
                num_canonical_nodes=1,  # fixed: the order must not change with the number of machines
            )
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{split} rows: {error}") from error
    if dist.get_global_rank() == 0:
        for note in filter(None, (short_rows_note(stream, prepared.seq_len) for stream in prepared.streams[split])):
            err(note)
    # The generator: an iterator of a DataLoader draws a number from it, otherwise from the model's random state.
    generator = torch.Generator().manual_seed(seed)
    batches = _Loader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        drop_last=training,
        collate_fn=_as_batch,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_begin_reader,
    )
    return DataSpec(batches, get_num_samples_in_batch=_count_rows, get_num_tokens_in_batch=_count_tokens)


class _Loader(DataLoader):
    """A DataLoader whose processes outlive a signal to the group: the run saves first, and ends them then."""

    def _get_iterator(self) -> Any:
        with sheltered():
            return super()._get_iterator()


def _begin_reader(worker: int) -> None:
    stay_with_parent()
    # Python prints what keeps a batch from being handed over, drops the batch, and training waits for it for ever.
    setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", staticmethod(_end_reader))  # noqa: B010 - private


def _end_reader(error: BaseException, batch: object) -> None:
    os.write(2, f"process {os.getpid()}, which reads rows, ends: {type(error).__name__}: {error}\n".encode())
    os._exit(1)


def _as_batch(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Rows as one tensor a name, made at once: a tensor for each row costs as much as reading it."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def _count_rows(batch: dict[str, torch.Tensor]) -> int:
    return len(batch["input_ids"])


def _count_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Tokens of the batch as computed on, padding included: a shape, so that counting waits for no device."""
    return batch["input_ids"].numel()


def _check_enough(prepared: PreparedData, split: str, batch_size: int) -> None:
    rows, devices = prepared.rows(split), dist.get_world_size()
    if not rows:
        raise DataError(f"there are no {split} rows (validation_fraction = {prepared.config.validation_fraction})")
    if split == "train" and rows < batch_size * devices:
        one = f"{batch_size} rows" if devices == 1 else f"{batch_size} rows on each of {devices} devices"
        raise DataError(
            f"{rows:,} training rows of {prepared.seq_len:,} tokens are less than one batch ({one}); "
            "give more text, a smaller batch or a smaller seq_len"
        )


def _handed_over(seq_len: int, batch_size: int, num_workers: int) -> int:
    """Bytes of shared memory that loaders of both splits use at most on this machine, their own segments included."""
    batch = batch_size * seq_len * sum(each.itemsize for each in (torch.int64, torch.int64, torch.bool))
    ahead = num_workers * (1 + 2)  # the DataLoader asks two batches ahead of each worker
    return 2 * (ahead * batch * dist.get_local_world_size() + 16 * mmap.PAGESIZE)


def _check_open_files(num_workers: int) -> None:
    """Allow this process, and those that it starts, as many open files as it may; raise DataError if that is too few.

    Each batch that is handed over is three open files, in the process that reads it and in the one that trains.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        soft = max(soft, wanted)
    needed = 40 + 12 * num_workers  # 48 were too few for one, 64 were enough
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise DataError(
            f"a process may have {soft} open files here, and train.workers: {num_workers} needs {needed}; raise the "
            "limit (ulimit -n 4096), or set train.workers to 0"
        )


def _check_sockets() -> None:
    """Processes that read rows hand them over by a socket in the temporary folder, pymp-XXXXXXXX/listener-XXXXXXXX.

    The path of a socket has 107 bytes at most. A process that cannot make one dies in a thread of its own, and the
    training waits for its rows for ever (seen with Python 3.11).
    """
    folder = tempfile.gettempdir()
    most = 107 - len("/pymp-XXXXXXXX/listener-XXXXXXXX")
    if len(os.fsencode(folder)) > most:
        raise DataError(
            f"the temporary folder's path must be at most {most} bytes for the sockets of train.workers; "
            f"found {folder}. Set TMPDIR to a shorter one, such as /tmp, or train.workers to 0"
        )


def _check_shards(streams: tuple[RowStream, ...]) -> None:
    """Check local shards by size and hash, on one process of each machine, while the others wait."""
    if dist.get_world_size() > 1 and not torch.distributed.is_initialized():
        dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu")
    if dist.get_local_rank() == 0:
        for stream in streams:
            if stream.remote:
                remove_broken(stream.folder)
            else:
                make_ready(stream.folder, stream.remedy)
    dist.barrier()


def _stream(stream: RowStream) -> CheckedStream:
    return CheckedStream(
        remote=stream.remote,
        local=str(stream.folder),
        proportion=stream.proportion,
        choose=stream.choose,
        validate_hash=hash_name(read_index(stream.folder)),
    )
