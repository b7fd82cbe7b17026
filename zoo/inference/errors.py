"""The error of this room."""

from zoo.errors import ZooError


class GenerationError(ZooError):
    """A prompt, an option or a run that nothing can be generated from; raised before the model is run."""

    exit_code = 2
