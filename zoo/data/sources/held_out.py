"""Where the validation text of whole files is: files chosen by their hash, or the end of the largest file."""

import json
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import xxhash

from zoo.data.sources.base import sampled
from zoo.data.sources.whole_files import WholeFiles
from zoo.data.text_files import content_bytes, cut_place, is_html
from zoo.errors import ZooError
from zoo.files import make_folder, read_json, write_sealed_json

FEW_FILES = 32  # up to so many, their hashes may put all of them on one side of training and validation
SIDES = 2  # part of the name of what is kept of them: raise it when the same files give another answer


def place_of_cut(files: list[Path], fraction: float, cache: Path | None = None) -> tuple[Path, int] | None:
    """(file, byte) from which on the validation text is the end of a file; None where documents are held out by hash.

    That is so for one file, and for a few whose hashes put all on one side.  files: one document each.  cache: a folder
    that keeps what reading those few files whole has shown.
    """
    plain = [path for path in files if not is_html(path)]
    if not plain or len(files) > FEW_FILES or (len(files) > 1 and _on_both_sides(files, fraction, cache)):
        return None
    sizes = {path: content_bytes(path) for path in plain}
    largest = max(plain, key=lambda path: sizes[path])
    held = min(round(fraction * sum(sizes.values())), sizes[largest] // 2)
    return (largest, cut_place(largest, sizes[largest] - held)) if held else None


def _on_both_sides(files: list[Path], fraction: float, cache: Path | None) -> bool:
    """Whether the hashes of whole files hold some of them out, and not all; reads them, once for each of their states.

    A preparation asks several times, and every later training once: the answer lies in `cache` then, under the names,
    sizes, times and samples of the files.  What cannot be read or written there is found anew each time.
    """
    stats = [path.stat() for path in files]
    states = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]
    if cache is None:
        return _read_on_both_sides(tuple(files), fraction, *states)
    known = [(path.name, *state[:2], sampled(path, *state)) for path, state in zip(files, states, strict=True)]
    kept = cache / f"sides-{xxhash.xxh64(json.dumps([SIDES, known, fraction]).encode()).hexdigest()}.json"
    with suppress(ZooError):
        found = read_json(kept).get("both")
        if isinstance(found, bool):
            return found
    found = _read_on_both_sides(tuple(files), fraction, *states)
    with suppress(ZooError, OSError):
        make_folder(cache)
        write_sealed_json(kept, {"both": found})
    return found


@lru_cache
def _read_on_both_sides(files: tuple[Path, ...], fraction: float, *states: tuple[int, ...]) -> bool:
    sides = set()
    for path in files:
        hasher, size = xxhash.xxh64(), 0
        for part in WholeFiles((path,)).parts():
            hasher.update(part.text.encode())
            size += len(part.text)
        if size:  # an empty document is on no side
            sides.add(hasher.intdigest() < fraction * 2**64)
        if len(sides) == 2:
            return True
    return False
