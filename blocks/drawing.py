"""Linear maps and embeddings whose weights are drawn later. No torch at the top.

PyTorch draws weights when a module is made. `zoo.model.build_model` draws them again, by the recipe's seed, which would
take twice the time: the zoo's own parts leave them undrawn meanwhile. Parts of other packages get them drawn as ever,
because their code may read them, keep them in a buffer, or leave them as they are.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_drawn: ContextVar[bool] = ContextVar("drawn", default=True)  # of this thread: others may make modules meanwhile


def is_drawn() -> bool:
    """Whether the zoo's own parts draw weights when they are made: not within `drawn(False)`."""
    return _drawn.get()


@contextlib.contextmanager
def drawn(wanted: bool) -> Iterator[None]:
    """For the length of a `with`, in this thread: whether the zoo's own parts draw weights when they are made."""
    before = _drawn.set(wanted)
    try:
        yield
    finally:
        _drawn.reset(before)


class DrawnLater:
    """Inherited before a class of PyTorch: its modules keep what is in their memory if made within `drawn(False)`."""

    def reset_parameters(self) -> None:
        """Draw the weights as PyTorch does, unless they are drawn later."""
        if is_drawn():
            super().reset_parameters()  # type: ignore[misc]
