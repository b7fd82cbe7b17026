"""Rotary position embeddings as a config.json writes them, and as a block of a recipe does.  No torch.

transformers 4 has `rope_theta` and `rope_scaling`, transformers 5 one mapping `rope_parameters`; both are read, and the
former, which every release reads, is written.
"""

from typing import Any

from pydantic import BaseModel, ValidationError

from zoo.blocks.positions.base import PositionConfig
from zoo.blocks.positions.none_config import NoPosition
from zoo.blocks.positions.rotary_config import LinearScaling, Llama3Scaling, Rotary, YarnScaling
from zoo.errors import first_mistake
from zoo.interop.errors import InteropError
from zoo.interop.keys import Keys

SCALINGS: dict[str, type[BaseModel]] = {"linear": LinearScaling, "yarn": YarnScaling, "llama3": Llama3Scaling}


def read_rope(
    keys: Keys, max_seq_len: int, layer_type: str | None = None, theta: float | None = None
) -> dict[str, Any]:
    """The fields `rope_theta`, and `rope_scaling` where there is one, of a block.

    layer_type: of a family whose `rope_parameters` may hold a mapping for each type of layer.  theta: the base of this
    type, which then has no `rope_scaling`, where there are no rope_parameters.
    """
    parameters = keys.mapping("rope_parameters")
    scaling = keys.mapping("rope_scaling") if parameters is None or keys.has("rope_scaling") else None
    if parameters is not None and layer_type is not None and isinstance(parameters.get(layer_type), dict):
        return _of_type(keys, parameters, layer_type, max_seq_len)
    if parameters is None:
        name = "rope_scaling"
        if theta is not None:
            return {"rope_theta": theta}
        theta = keys.number("rope_theta")
    else:
        if scaling is not None and scaling != parameters:
            keys.refuse("rope_scaling", "must not be given together with other rope_parameters")
        name, scaling = "rope_parameters", {key: parameters[key] for key in parameters if key != "rope_theta"}
        default = keys.number("rope_theta")
        theta = keys.inside(name, parameters).number("rope_theta", default)
    fields: dict[str, Any] = {"rope_theta": theta}
    if scaling and (found := _scaling(keys, name, scaling, max_seq_len)):
        fields["rope_scaling"] = found
    return fields


def _of_type(keys: Keys, parameters: dict[str, Any], layer_type: str, max_seq_len: int) -> dict[str, Any]:
    for key, value in parameters.items():
        if not isinstance(value, dict):
            keys.refuse("rope_parameters", f"must have a mapping for each type of layer; {key} is none")
    inside = keys.inside("rope_parameters", parameters)
    written, name = parameters[layer_type], f"rope_parameters.{layer_type}"
    theta = inside.inside(layer_type, written).number("rope_theta")
    scaling = {key: value for key, value in written.items() if key != "rope_theta"}
    found = _scaling(keys, name, scaling, max_seq_len) if scaling else None
    return {"rope_theta": theta} | ({"rope_scaling": found} if found else {})


def _scaling(keys: Keys, name: str, written: dict[str, Any], max_seq_len: int) -> dict[str, Any] | None:
    inside = keys.inside(name, written)
    kinds = [kind for key in ("rope_type", "type") if (kind := inside.value(key, None)) is not None]
    if kinds[1:] and kinds[0] != kinds[1]:
        keys.refuse(name, "rope_type and type must be the same")
    kind = kinds[0] if kinds else "default"
    if kind == "default":
        inside.finish()
        return None
    if not isinstance(kind, str) or kind not in SCALINGS:
        inside.refuse("rope_type" if "rope_type" in written else "type", f"must be default, {', '.join(SCALINGS)}")
    found = {key: inside.value(key, None) for key in SCALINGS[kind].model_fields if key != "rope_type"}
    inside.finish()
    if kind == "yarn" and not found["original_max_position_embeddings"]:
        found["original_max_position_embeddings"] = max_seq_len
    found = {"rope_type": kind, **{key: value for key, value in found.items() if value is not None}}
    try:
        SCALINGS[kind].model_validate(found, strict=True)
    except ValidationError as error:
        raise InteropError(f"{keys.place}: {first_mistake(error, name, found=True)}") from error
    return found


def unrotated(block: dict[str, Any]) -> dict[str, Any]:
    """The fields of a block without rotation (NoPE)."""
    return {key: value for key, value in block.items() if not key.startswith("rope")} | {"rope": False}


def write_rope(projection: Any) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a projection (zoo.blocks.projections.base.ResolvedProjection)."""
    rotary = projection.position if isinstance(projection.position, Rotary) else Rotary()
    scaling = rotary.scaling
    return {
        "rope_theta": rotary.theta,
        "rope_scaling": None if scaling is None else scaling.model_dump(mode="json", exclude_none=True),
    }


def rope_facts(position: PositionConfig) -> dict[str, Any]:
    """A position embedding by the fields of a block: those that begin with rope, or `position` for another kind."""
    if isinstance(position, Rotary):
        return {"rope": True, "rope_theta": position.theta, "rope_scaling": position.scaling}
    return {"rope": False} if isinstance(position, NoPosition) else {"position": position}
