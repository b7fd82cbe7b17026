"""A limit on address space (`ulimit -v`) that PyTorch does not fit in is told in one line.

Importing PyTorch there ends the process: constructors of its libraries call abort(), which Python cannot catch.  So
another process tries it first.  Without a low limit nothing is tried.
"""

import resource
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

from zoo.errors import ZooError

TRIED_BELOW_BYTES = 16 << 30
HEADROOM_BYTES = 1 << 30  # what a command needs in addition to PyTorch: other libraries, and its own work
_STATM = Path("/proc/self/statm")
_TRY = """
import resource, sys
taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]),) * 2)
import torch
"""


def limit() -> int | None:
    """The most address space of this process in bytes, None if there is no limit."""
    found = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if found == resource.RLIM_INFINITY else found


def taken() -> int | None:
    """The address space of this process in bytes, None where the system does not say."""
    return int(_STATM.read_text().split()[0]) * resource.getpagesize() if _STATM.exists() else None


def watch_imports() -> None:
    """Let `import torch` raise ZooError, where this process has a limit that PyTorch does not fit in."""
    most = limit()
    if most is not None and most < TRIED_BELOW_BYTES and taken() is not None and "torch" not in sys.modules:
        sys.meta_path.insert(0, _Trial(most))


class _Trial(MetaPathFinder):
    """Tries the import of torch in another process, once, and refuses it here if that failed."""

    def __init__(self, most: int):
        self._most = most
        self._fits: bool | None = None

    def find_spec(self, fullname: str, path=None, target=None) -> None:
        if fullname != "torch":
            return
        if self._fits is None:
            self._fits = _fits(self._most - (taken() or 0) - HEADROOM_BYTES)
        if not self._fits:
            raise ZooError(
                f"this shell limits the address space of a process to {self._most / 1e9:,.1f} GB, which is too little "
                "for PyTorch: raise the limit (ulimit -v unlimited)"
            )


def _fits(room: int) -> bool:
    """Whether another process, to which `room` bytes are left, can import torch."""
    if room <= 0:
        return False
    command = [sys.executable, "-c", _TRY, str(room)]
    try:
        return not subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode
    except OSError:  # not even a process can be started
        return False
