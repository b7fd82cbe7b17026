"""Local files of a source: which files its `paths` name, what is left out and why, and what is refused by name."""

import errno
import fnmatch
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from zoo.data.config import Files
from zoo.data.errors import DataError
from zoo.errors import shorten
from zoo.files import open_file

COMPRESSED = (".gz", ".zst", ".bz2", ".lz4", ".xz")
HTML = (".html", ".htm")
SUFFIXES = {
    "text": (".txt", ".text", ".md", ".rst", ".py", *HTML),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".br", ".lzma", ".z")
NOT_CONTENT = ("__MACOSX", "__pycache__")  # folders that a program left next to the data
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HEAD_BYTES = 256


@dataclass
class Found:
    """The files of a source, in the order they are read, and how many others were left out, by reason."""

    files: list[Path] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)

    @property
    def note(self) -> str | None:
        """What was left out, in words; None if nothing was."""
        if not self.left_out:
            return None
        return "not read: " + ", ".join(f"{n:,} {why}" for why, n in sorted(self.left_out.items()))


def suffixes_of(source: Files) -> tuple[str, ...]:
    """The extensions that a source reads of a folder, in lower case."""
    own = getattr(source, "extensions", None)
    return tuple(suffix.lower() for suffix in own) if own else SUFFIXES[source.kind]


def is_hidden(relative: Path) -> bool:
    """Whether a file below a source's folder is left out because of its own name or a folder's."""
    return any(part.startswith(".") or part in NOT_CONTENT for part in relative.parts)


def local_path(text: str | Path) -> Path:
    """The path that a recipe means: `~` and `~name` are home folders.

    Raises DataError if there is no such user, and for what no system takes for a path.
    """
    if "\0" in str(text):
        raise DataError(f"{shorten(str(text))}: must be a path; a NUL character cannot be in one")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"{text}: there is no such user's home folder") from error


def find_files(source: Files) -> list[Path]:
    """Return the files that `paths` name, each once, in the order named; sorted inside a folder or glob.

    Raises DataError for a path that names nothing, for a named file that is empty, for a broken link in the place of a
    data file, and for a Git LFS pointer.
    """
    return survey(source).files


def survey(source: Files) -> Found:
    """As `find_files`, with the count of what folders and globs hold and the source does not read."""
    found = Found()
    seen: set[str] = set()
    for pattern in source.paths:
        try:
            matches = _named(local_path(pattern), source)
        except OSError as error:  # a folder on the way that may not be entered, a name that is too long
            raise DataError(f"source {source.kind}: {pattern}: cannot be read: {error.strerror}") from error
        found.left_out += matches.left_out
        if not matches.files and not local_path(pattern).is_file():  # such a file is empty, and skipped
            raise DataError(f"source {source.kind}: {pattern}: {_nothing_there(pattern, source, matches)}")
        for file in matches.files:
            real = _real(file)
            if real not in seen:
                seen.add(real)
                found.files.append(file)
    if not found.files:
        raise DataError(f"source {source.kind}: no file with content ({found.note})")
    return found


def _named(path: Path, source: Files) -> Found:
    """What one of the `paths` names."""
    found = Found()
    if path.is_file():
        if _check_named(path, skip_empty=getattr(source, "on_error", "fail") == "skip"):
            found.files.append(path)
        else:
            found.left_out["empty files"] += 1
    elif path.is_dir():
        _walk(path, source, found)
    else:
        _glob(path, source, found)
    return found


def _real(file: Path) -> str:
    """One name for one file: resolves the links of its folder (remembered) and of itself."""
    return os.path.realpath(file) if file.is_symlink() else f"{_real_folder(file.parent)}/{file.name}"


@lru_cache(maxsize=4096)
def _real_folder(folder: Path) -> str:
    return os.path.realpath(folder)


def _walk(top: Path, source: Files, found: Found) -> None:
    """Collect the files below a folder that the source reads, without hidden ones."""
    for folder, names in _folders(top, found):
        for name in names:
            _sort_out(folder / name, source, found)
    found.files.sort()
    found.left_out += Counter()  # drops zeros


def _folders(top: Path, found: Found, hidden_too: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below `top` with their files.  Links are followed, each folder once, so that a loop ends."""
    been: set[str] = set()

    for folder, inner, names in os.walk(top, followlinks=True, onerror=refuse_folder):
        real = os.path.realpath(folder)
        if real in been:
            found.left_out["linked folders that are read already"] += 1
            inner.clear()
            continue
        been.add(real)
        hidden = [name for name in inner if (name.startswith(".") and not hidden_too) or name in NOT_CONTENT]
        found.left_out["hidden folders"] += len(hidden)
        inner[:] = sorted(set(inner) - set(hidden))
        yield Path(folder), names


def files_below(top: Path) -> list[Path]:
    """All files in and below a folder, sorted; empty if there is no folder.  Links to folders are not followed.

    Raises DataError for a folder that cannot be read.
    """
    folders = os.walk(top, onerror=refuse_folder) if top.is_dir() else ()
    return sorted(path for folder, _, names in folders for name in names if (path := Path(folder, name)).is_file())


def refuse_folder(error: OSError) -> NoReturn:
    """Raise DataError that names the folder of an error: what `os.walk` calls for one that cannot be read."""
    raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def _check_folders(pattern: Path) -> None:
    """Raise DataError for a folder on the way of a glob that cannot be read: glob.glob finds nothing in it."""
    for i, part in enumerate(pattern.parts[1:], start=1):
        needed = os.X_OK | (os.R_OK if glob.has_magic(part) else 0)
        for name in glob.glob(str(Path(*pattern.parts[:i]))):
            if os.path.isdir(name) and not os.access(name, needed):
                refuse_folder(PermissionError(errno.EACCES, os.strerror(errno.EACCES), name))


def _glob(pattern: Path, source: Files, found: Found) -> None:
    if "**" not in pattern.parts:
        _check_folders(pattern)
        matches = [Path(name) for name in glob.glob(str(pattern))]
    else:  # glob.glob goes round in linked folders
        at = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
        wanted = pattern.parts[at:]
        top = Path(*pattern.parts[:at])
        below = _folders(top, Found(), hidden_too=any(part.startswith(".") for part in wanted)) if top.is_dir() else ()
        files = (folder / name for folder, names in below for name in names)
        matches = [file for file in files if _fits(file.parts[at:] if at else file.parts, wanted)]
    for path in sorted(matches):
        if not path.is_dir() and not set(NOT_CONTENT) & set(path.parts[:-1]):
            _sort_out(path, source, found, any_suffix=True)


def _fits(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether a path fits a glob; `**` stands for any folders that are not hidden."""
    if not wanted or not parts:
        return not parts and all(part == "**" for part in wanted)
    if wanted[0] == "**":
        skips = len(wanted) > 1 and _fits(parts, wanted[1:])
        return skips or (not parts[0].startswith(".") and _fits(parts[1:], wanted))
    if parts[0].startswith(".") and not wanted[0].startswith("."):
        return False
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _sort_out(path: Path, source: Files, found: Found, any_suffix: bool = False) -> None:
    """Enter a file that a folder or glob holds: among the files, or among those left out."""
    why = _reason_against(path, suffixes_of(source), any_suffix)
    if why:
        found.left_out[why] += 1
        return
    check_head(path)
    found.files.append(path)


def _reason_against(path: Path, suffixes: tuple[str, ...], any_suffix: bool) -> str | None:
    name, suffix = path.name, bare_suffix(path)
    if name.startswith(".") and not any_suffix:
        return "hidden files"
    if name.endswith("~") or name.startswith("~$") or (name.startswith("#") and name.endswith("#")):
        return "backup files of an editor"
    if path.is_symlink() and not path.exists():
        if suffix not in suffixes and not any_suffix:
            return "broken links"
        raise DataError(f"{path}: a broken link (to {os.readlink(path)}); restore what it names, or remove it")
    if suffix not in suffixes and not (any_suffix and suffix not in ARCHIVES):
        return f"{suffix} files" if suffix else "files without an extension"
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(about.st_mode):
        return "pipes, sockets or devices"
    return None if about.st_size else "empty files"


def bare_suffix(path: Path) -> str:
    """The suffix that tells the kind, in lower case: of `a.JSONL.gz` it is `.jsonl`."""
    return (Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix).lower()


def _nothing_there(pattern: str, source: Files, found: Found) -> str:
    also = f" ({found.note})" if found.note else ""
    path = local_path(pattern)
    if path.is_dir():
        return f"the folder holds no {', '.join(suffixes_of(source))} files{also}"
    if path.is_symlink():
        return f"a broken link (to {os.readlink(path)})"
    if path.exists():
        return "neither a file nor a folder"
    if glob.has_magic(pattern):
        return f"no file matches (relative to {Path.cwd()}){also}"
    return f"no such file or folder (relative to {Path.cwd()})"


def _check_named(path: Path, skip_empty: bool) -> bool:
    """Whether a file that is named has content.  Raises DataError for one that cannot be read, or may not be empty."""
    if path.suffix.lower() in ARCHIVES:
        raise DataError(
            f"{path}: an archive or a compression that is not read; unpack it (read are plain, {', '.join(COMPRESSED)})"
        )
    if check_head(path):
        return True
    if skip_empty:
        return False
    raise DataError(f"{path}: the file is empty; on_error: skip leaves out such files")


def check_head(path: Path) -> bytes:
    """Return the first bytes of a file.  Raises DataError for one that cannot be read, and for a Git LFS pointer."""
    with open_file(path, DataError) as file:
        head = file.read(HEAD_BYTES)
    refuse_lfs_pointer(path, head)
    return head


def refuse_lfs_pointer(path: Path, head: bytes) -> None:
    """Raise DataError if a file is what Git LFS leaves in the place of a file that was not fetched."""
    if head.startswith(LFS_POINTER):
        raise DataError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")
