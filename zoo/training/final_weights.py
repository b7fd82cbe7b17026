"""model.safetensors, model.yaml and the tokenizer's files: all that `zoo.load` and `zoo generate` read."""

import shutil
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file

from zoo.data.tokenizers import Subwords
from zoo.files import replace_durably, sha256, write_text
from zoo.recipe.seal import sealed
from zoo.runs.folder import RunFolder


def full_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The decoder's weights on the CPU of rank 0, whole, however they are spread. All ranks must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from zoo.training.composer_model import PREFIX  # Composer takes seconds to import

    spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    options = StateDictOptions(full_state_dict=spread, cpu_offload=spread)
    state = get_model_state_dict(model, options=options)
    return {name.removeprefix(PREFIX): tensor.cpu().contiguous() for name, tensor in state.items()}


def export(folder: RunFolder, recipe, state: dict[str, torch.Tensor], tokenizer=None) -> str:
    """Write the weights, the model's recipe and its tokenizer into the run folder; returns the SHA-256 of the weights.

    tokenizer: of zoo/data/tokenizers.py, None where rows are numbers. One that is not bytes has files of its own: what
    it was made from, data that are elsewhere or a name on the Hub, need not be there when the run is used.
    """
    temporary = Path(folder.weights).with_name(".writing-model.safetensors")
    temporary.unlink(missing_ok=True)  # a link there is not followed
    try:
        save_file(state, temporary, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder.weights} cannot be written: {error}") from error
    shutil.copymode(folder.recipe, temporary)  # safetensors lets only the owner read
    digest = sha256(temporary)
    replace_durably(temporary, folder.weights)
    used = recipe.data.resolved_tokenizer()
    description = {
        "name": recipe.name,
        "summary": recipe.summary,
        **({"plugins": recipe.plugins} if recipe.plugins else {}),
        "model": yaml.safe_load(recipe.dump())["model"],
        "tokenizer": None if used is None else used.model_dump(mode="json", exclude_none=True),
        **({"tokenizer_sha256": tokenizer.save(folder.path)} if isinstance(tokenizer, Subwords) else {}),
        "weights": {"file": folder.weights.name, "sha256": digest},
    }
    write_text(folder.model, sealed(yaml.safe_dump(description, sort_keys=False, allow_unicode=True)))
    return digest
