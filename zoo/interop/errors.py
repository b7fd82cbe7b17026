"""What goes wrong between the zoo and models of other libraries."""

from zoo.errors import ZooError


class InteropError(ZooError):
    """A folder, an architecture or an option that cannot be converted; the message names the file and the key."""

    exit_code = 2
