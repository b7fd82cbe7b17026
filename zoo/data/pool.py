"""Work on the pieces of a source, one after another in this process or side by side in several."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from zoo.data.errors import DataError
from zoo.data.sources.pieces import Piece, Texts
from zoo.processes import sheltered, stay_with_parent

Result = TypeVar("Result")
Work = Callable[[Piece, Path], Result]
Numbered = Iterator[tuple[int, Piece]]


def each(
    work: Work[Result], todo: Numbered, workers: int, scratch: Path, *, in_order: bool = False
) -> Generator[tuple[int, Result]]:
    """Yield (number, what `work` returns) of every piece; in this process when there is one worker or one piece.

    work: called with a piece and a folder of `scratch` for its files; sent to each process once.  in_order: yield the
    results in the order of the pieces; otherwise as soon as each is there.  Raises DataError if a process dies.
    """
    head = list(islice(todo, 2))
    todo = chain(head, todo)
    if workers == 1 or len(head) < 2:
        yield from ((part, work(piece, scratch / str(part))) for part, piece in todo)
        return
    # Spawned, not forked: the caller may have threads and CUDA.  A worker imports no torch and starts in about 0.3 s.
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, spawn, initializer=_start, initargs=(work,))
    try:
        yield from _in_pool(pool, todo, scratch, 2 * workers, in_order)
    except BrokenProcessPool as error:
        raise DataError(
            "a tokenising process died: out of memory (lower data.workers), killed, or started from a script without "
            '`if __name__ == "__main__":`'
        ) from error
    except BaseException:  # Ctrl-C, an error in another piece: nobody waits for what the workers have begun
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _in_pool(
    pool: ProcessPoolExecutor, todo: Numbered, scratch: Path, most: int, in_order: bool
) -> Iterator[tuple[int, Any]]:
    """At most `most` pieces are read ahead of what is yielded."""
    pending: deque[tuple[int, Future]] = deque()
    for part, piece in chain(todo, [(-1, None)]):
        if piece is not None:
            folder = scratch / str(part)
            if isinstance(piece, Texts):  # pieces that wait must not hold their text in memory
                folder.mkdir(parents=True)
                piece = piece.written(folder / "texts.jsonl")
            with sheltered():  # the pool starts its processes at the first piece
                pending.append((part, pool.submit(_work, piece, folder)))
        while len(pending) >= (most if piece is not None else 1):
            if in_order:
                done = {pending[0][1]}
            else:
                done = wait([future for _, future in pending], return_when=FIRST_COMPLETED).done
            ready = [each for each in pending if each[1] in done]
            pending = deque(each for each in pending if each[1] not in done)
            yield from ((number, future.result()) for number, future in ready)


_in_worker: dict[str, Work] = {}


def _start(work: Work) -> None:
    _in_worker["work"] = work
    stay_with_parent()  # the preparation that started it decides what a signal to the group means


def _work(piece: Piece, folder: Path) -> Any:
    return _in_worker["work"](piece, folder)
