"""Whether torch may multiply float32 in TF32, left as it was: Composer allows it for the whole process on a GPU.

torch has three settings of this, of which the newest, `fp32_precision`, is one for each library. Setting an older one
sets it too. Reading an older one raises RuntimeError if the two do not agree.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

BACKENDS: Any = torch.backends  # whose types lack cudnn.conv and cudnn.rnn
PARTS = BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn


def settings() -> tuple:
    """What torch says of all of them; None for one that it refuses to read."""
    older = (
        _read(torch.get_float32_matmul_precision),
        _read(lambda: torch.backends.cuda.matmul.allow_tf32),
        _read(lambda: torch.backends.cudnn.allow_tf32),
    )
    return *older, *(part.fp32_precision for part in PARTS)


@contextlib.contextmanager
def tf32_as_before() -> Iterator[None]:
    """Restore the settings after the `with`, if they have changed in it."""
    before = settings()
    try:
        yield
    finally:
        if settings() != before:
            _restore(before)


def _restore(before: tuple) -> None:
    """The older settings first: they change `fp32_precision` too. One that could not be read was torch's default."""
    precision, _, cudnn, *newest = before
    torch.backends.cudnn.allow_tf32 = True if cudnn is None else cudnn
    torch.set_float32_matmul_precision(precision or "highest")  # sets the flag of products too
    for part, one in zip(PARTS, newest, strict=True):
        part.fp32_precision = one


def _read(setting: Callable[[], Any]) -> Any:
    try:
        return setting()
    except RuntimeError:
        return None
