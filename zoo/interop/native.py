"""`zoo export --as FAMILY`: a run as transformers, vLLM and others know the architecture, without code of ours."""

import json
from pathlib import Path
from typing import Any

from zoo.files import write_text
from zoo.interop.architecture import write_config
from zoo.interop.family import Family

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def native_config(family: str, run: str | Path) -> tuple[Family, dict[str, Any]]:
    """The family and the config.json of a run's model, before its weights are read.

    Raises InteropError that says why if the family has no such model, LoadError if the folder is no run.
    """
    from zoo.runs.weights import Stored

    return write_config(family, Stored.of(run).model)


def native_tensors(family: Family, model: Any) -> dict[str, Any]:
    """The tensors of a zoo.model.Decoder under the names of the family."""
    from zoo.interop.weights import to_theirs

    return to_theirs(model.state_dict(), list(family.rules(model.config)))


def write_native_config(config: dict[str, Any], end: dict[str, int], folder: Path, dtype: str) -> None:
    """config.json.  end: bos_token_id and eos_token_id, empty where rows are numbers."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) | end
    # The config classes of some families have numbers of their own for tokens that are not written.
    written = config | tokens | {"torch_dtype": TORCH_NAMES[dtype], "use_cache": True}
    write_text(folder / "config.json", json.dumps(written, indent=2) + "\n")
