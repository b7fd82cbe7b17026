"""What can go wrong in an evaluation that the user can mend."""

from zoo.errors import ZooError


class EvaluationError(ZooError):
    """A task, a model or a setting that cannot be evaluated; the message says what to change."""

    exit_code = 2
