"""The error of this room."""

from zoo.errors import ZooError


class DataError(ZooError):
    """Data that is missing, broken, or does not fit the recipe; raised before training where that can be known."""

    exit_code = 2
