"""Where Triton keeps what it compiled. Imports neither torch nor Triton."""

import os
from pathlib import Path


def triton_cache() -> Path:
    """The folder of Triton's cache, as Triton reads it from the environment."""
    found = os.environ.get("TRITON_CACHE_DIR") or Path(os.environ.get("TRITON_HOME", Path.home())) / ".triton" / "cache"
    return Path(found)
