"""JSON for whoever reads what the zoo prints or reports."""

import json
import math
from typing import Any


def json_text(value: Any, indent: int | None = 2) -> str:
    """The value as JSON, with a line feed at its end.

    NaN and infinity, such as the loss of a run that diverged, are null: Python would write `NaN`, which is not JSON and
    which jq, JavaScript and most other readers refuse.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
