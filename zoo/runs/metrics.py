"""Reading metrics.jsonl, the record of each batch and validation of a run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import shorten
from zoo.files import FileError, open_file, present

MOST_LINE_BYTES = 1 << 20
MOST_NUMBER = 1e100  # plots and sums of larger ones overflow
MEASURED = (
    *("tokens", "time_s", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "added_loss"),
    *("validation_loss", "validation_bits_per_byte", "validation_accuracy"),
)


def read_metrics(path: Path, needed: Sequence[str] = ()) -> list[dict]:
    """The records of a metrics.jsonl; a last line that a kill cut short is left out.

    needed: numbers that every record must have, in addition to `batch`.
    Raises ZooError with the line for what is no record: a run folder may be damaged, or somebody else's.
    """
    return [record for _, record in read_lines(path, needed)]


def read_lines(path: Path, needed: Sequence[str] = ()) -> list[tuple[str, dict]]:
    """As `read_metrics`, each record with its line."""
    if not present(path):
        return []
    found = []
    with open_file(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES), b""), start=1):
            if line.endswith(b"\n"):
                found.append((line.decode(errors="replace"), _record(line, f"{path}:{number}", needed)))
            elif len(line) == MOST_LINE_BYTES:
                raise FileError(f"{path}:{number}: damaged, longer than {MOST_LINE_BYTES:,} bytes; remove the line")
    return found


def _record(line: bytes, place: str, needed: Sequence[str]) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{place}: damaged, not JSON: {error}; remove the line") from error
    if not (isinstance(record, dict) and "batch" in record):
        raise FileError(f"{place}: damaged, no record of a batch; remove the line")
    for name in ("batch", *needed, *(name for name in MEASURED if name in record)):
        if why := _number_problem(name, record.get(name)):
            raise FileError(
                f"{place}: damaged: {name} must be {why}; found {shorten(record.get(name))}; remove the line"
            )
    return record


def _number_problem(name: str, value: object) -> str | None:
    """What a number of a record must be and `value` is not; None if it is.

    A loss may be infinite or not a number, as that of a run that diverged is.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a number"
    if name in ("batch", "tokens") and not (isinstance(value, int) and 0 <= value < 2**63):
        return "a whole number from 0 to 2^63"
    if name in ("time_s", "tokens_per_s", "mfu") and not 0 <= value < MOST_NUMBER:
        return "a number of at least 0"
    if not abs(value) < MOST_NUMBER and not (isinstance(value, float) and not math.isfinite(value)):
        return f"at most {MOST_NUMBER:g}"
    return None
