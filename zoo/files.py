"""Files that others may have written, and files of ours that are whole whenever they are there.

Reading: only regular files are opened (a FIFO would hang, a device may have no end), up to a size, and every failure
names the file in one line.  Writing: under another name, synced, renamed; no symbolic link is followed.
`error` is the class of ZooError that a function raises, FileError by default.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from zoo.errors import ZooError, shorten

MOST_TEXT_BYTES = 64 << 20  # of a JSON, YAML or text file that is read whole
CHECKSUM = "checksum"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FileError(ZooError):
    """A file that cannot be read or written; the message names it and says what is there instead."""

    exit_code = 2


def open_file(path: str | os.PathLike, error: type[ZooError] = FileError) -> BufferedReader:
    """Open a regular file for reading bytes; a symbolic link to one is followed.

    Raises `error` naming the file if there is none, or a folder, FIFO, socket, device, a link to nothing, or a file
    that may not be read.  Never waits for another process.
    """
    check_file(path, error)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as found:
        _refuse(path, found, error)
    try:
        check_kind(path, os.fstat(descriptor).st_mode, error)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_file(path: str | os.PathLike, error: type[ZooError] = FileError) -> int:
    """The size in bytes of what must be a regular file, without opening it; raises as `open_file`.

    For files that another library opens by their name.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as reason:
        _refuse(path, reason, error)
    check_kind(path, found.st_mode, error)
    if not os.access(path, os.R_OK):
        raise error(f"{path}: cannot be read: Permission denied")
    return found.st_size


def check_kind(path: str | os.PathLike, mode: int, error: type[ZooError] = FileError) -> None:
    """Raise `error` unless `mode`, of `os.stat`, is that of a regular file."""
    if not stat.S_ISREG(mode):
        raise error(f"{path}: must be a file; found {_KINDS.get(stat.S_IFMT(mode), 'something else')}")


def present(path: str | os.PathLike, error: type[ZooError] = FileError) -> bool:
    """Whether a regular file is there.  Raises `error` if something else has its name, such as a link to nothing.

    Use it in place of `Path.is_file`, which takes a FIFO, or a folder that may not be entered, for no file.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as reason:
        _refuse(path, reason, error)
    check_file(path, error)
    return True


def _refuse(path: str | os.PathLike, reason: Exception, error: type[ZooError]) -> NoReturn:
    """Raise `error` for what the system says of a path."""
    shown = path if len(os.fspath(path)) < 1000 else shorten(os.fspath(path))
    if isinstance(reason, FileNotFoundError) and os.path.islink(path):
        raise error(f"{shown}: a symbolic link to {os.readlink(os.fspath(path))}, which is not there") from reason
    if isinstance(reason, FileNotFoundError):
        raise error(f"{shown}: no such file") from reason
    raise error(f"{shown}: cannot be read: {getattr(reason, 'strerror', None) or reason}") from reason


def read_bytes(path: str | os.PathLike, most: int = MOST_TEXT_BYTES, error: type[ZooError] = FileError) -> bytes:
    """The content of a regular file of at most `most` bytes; raises as `open_file`, and for a larger one."""
    with open_file(path, error) as file:
        try:
            data = file.read(most + 1)
        except OSError as found:
            _refuse(path, found, error)
    if len(data) > most:
        raise error(f"{path}: too large: more than {most:,} bytes")
    return data


def read_text(path: str | os.PathLike, most: int = MOST_TEXT_BYTES, error: type[ZooError] = FileError) -> str:
    """The UTF-8 text of a file, line ends as they are; raises as `read_bytes`, and for bytes that are not UTF-8."""
    data = read_bytes(path, most, error)
    try:
        return data.decode()
    except UnicodeDecodeError as found:
        raise error(f"{path}: not UTF-8 text: byte {found.start} is 0x{data[found.start]:02x}") from found


def read_json(
    path: str | os.PathLike,
    remedy: str = "remove it, and the same command continues without it",
    error: type[ZooError] = FileError,
    most: int = MOST_TEXT_BYTES,
) -> dict[str, Any]:
    """The JSON object of a file.  Raises `error`, with what to do, if it is damaged or another kind of value.

    The checksum of a file by `write_sealed_json` is verified and left out.
    """
    value = parse_object(read_text(path, most, error), path, remedy, error)
    stated = value.pop(CHECKSUM, None)
    if stated is not None and stated != _checksum(value):
        raise error(f"{path}: damaged, its checksum does not match; {remedy}")
    return value


def parse_object(
    text: str | bytes, place: object, remedy: str = "", error: type[ZooError] = FileError
) -> dict[str, Any]:
    """Parse a JSON object.  Raises `error` at `place` for what is no JSON (NaN and infinity included), or no object."""
    after = f"; {remedy}" if remedy else ""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as found:  # UnicodeDecodeError is a ValueError
        raise error(f"{place}: damaged, not JSON: {found}{after}") from found
    if not isinstance(value, dict):
        raise error(f"{place}: damaged, must be a JSON object; found {shorten(value)}{after}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{shorten(number)} is too large")
    return value


def inside(folder: Path, name: object) -> str | None:
    """Why `name` is not the path of a file inside `folder`, as lists of others' files give it; None if it is one.

    It must be relative, without `..`, and the folders on its way must not be symbolic links that lead out.  The file
    itself may be a link: reading follows it, writing replaces it.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return f"must be the name of a file; found {shorten(name)}"
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\\" in name:
        return f"must be a path inside {folder}, without '..'; found {shorten(name)}"
    parent = (folder / name).parent
    if not Path(os.path.realpath(parent)).is_relative_to(os.path.realpath(folder)):
        return f"must be a path inside {folder}; {parent} is a symbolic link that leads out of it"
    return None


def make_folder(path: Path, error: type[ZooError] = FileError) -> None:
    """Make a folder that is written into.  Raises `error` if a symbolic link, or a file, has its name.

    Folders of others may hold links; nothing is written or deleted through them.
    """
    if path.is_symlink():
        raise error(
            f"{path}: a symbolic link to {os.readlink(path)}; nothing is written through a link: "
            "put a folder in its place, or remove it"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as found:
        what = "is no folder" if isinstance(found, FileExistsError) else f"cannot be made: {found.strerror}"
        raise error(f"{path}: {what}") from found


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; whatever has its name, a symbolic link or a FIFO, is removed first."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "wb")


def open_to_append(path: Path, error: type[ZooError] = FileError) -> BinaryIO:
    """Open a file of ours for writing at its end; made if it is not there, never through a symbolic link.

    A file with several names (hard links) is copied first: the other names keep what they have.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if path.is_symlink():
        raise error(f"{path}: a symbolic link to {os.readlink(path)}; nothing is written through a link: remove it")
    if present(path, error) and path.stat().st_nlink > 1:
        write_bytes(path, path.read_bytes())
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as found:
        raise error(f"{path}: cannot be written: {found.strerror}") from found
    try:
        check_kind(path, os.fstat(descriptor).st_mode, error)
        return open(descriptor, "ab", buffering=0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def open_text_to_append(path: Path, error: type[ZooError] = FileError) -> io.TextIOWrapper:
    """As `open_to_append`, for UTF-8 text; each line is written when it is complete."""
    return io.TextIOWrapper(io.BufferedWriter(open_to_append(path, error)), encoding="utf-8", line_buffering=True)


def replace_durably(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final` so that after a crash or power loss `final` is the old file or the new, whole."""
    sync(temporary)
    os.replace(temporary, final)
    sync(final.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as `replace_durably` does.  Raises OSError that names `path`, not the temporary file."""
    name = path.name if len(os.fsencode(path.name)) < 200 else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    temporary = path.with_name(f".writing-{os.getpid()}-{name}")  # no longer than a file system takes
    try:
        with create(temporary) as file:
            file.write(data)
        replace_durably(temporary, path)
    except BaseException as error:  # a full disk, a folder in the file's place: what was written is of no use
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as `replace_durably` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `replace_durably` does."""
    write_text(path, json.dumps(value, indent=1))


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum, which `read_json` verifies: one flipped character shows."""
    as_read = json.loads(json.dumps(value))  # keys that are numbers become text
    write_json(path, value | {CHECKSUM: _checksum(as_read)})


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_files(folder: Path) -> None:
    """Force the content of a folder's files, and its entries, to disk."""
    for path in [*filter(Path.is_file, folder.iterdir()), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
