"""The weights of a model, drawn in a thread while the main one imports Composer and opens the recipe's data."""

import threading

from zoo.blocks.interface import SelfInitialised
from zoo.blocks.making import is_own


class Drawing:
    """The model of a recipe while its weights are drawn. A context manager, which ends the drawing on exit.

    A model with modules of other packages that draw their own weights is drawn by `take`, in the main thread: their
    code may not expect another one. What draws weights must import nothing (`lean_import` hides packages meanwhile).
    The model takes 4 bytes a parameter in each process from here on, also while data are prepared.
    Raises what `zoo.build_model` does.
    """

    def __init__(self, recipe):
        from zoo.model import decoder  # imports torch

        self.model = decoder.undrawn(recipe.model)
        self.draw = lambda: decoder.initialise(self.model, recipe.seed, going=lambda: not self.stopped)
        self.stopped = False
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        if all(is_own(type(module)) for module in self.model.modules() if isinstance(module, SelfInitialised)):
            self.thread = threading.Thread(target=self._draw, name="zoo-drawing", daemon=True)
            self.thread.start()

    def _draw(self) -> None:
        try:
            self.draw()
        except BaseException as error:  # for the main thread
            self.error = error

    def take(self):
        """The model, a `Decoder`, when its weights are drawn."""
        if self.thread is None:
            self.draw()
        else:
            self.thread.join()
        if self.error is not None:
            raise self.error
        return self.model

    def __enter__(self) -> "Drawing":
        return self

    def __exit__(self, *_) -> None:
        self.stopped = True
        if self.thread is not None:
            self.thread.join()
