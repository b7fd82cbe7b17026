"""config.json to the `model` section of a recipe, and back; what either cannot say is refused by name.  No torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from pydantic import BaseModel, ValidationError

from zoo.errors import first_mistake, shorten
from zoo.interop.errors import InteropError
from zoo.interop.family import Family
from zoo.interop.keys import Keys
from zoo.interop.registry import TEXT_MODELS, family_to_write
from zoo.interop.registry import family as find_family
from zoo.interop.rope import rope_facts
from zoo.recipe import ModelConfig
from zoo.recipe.differences import differences, in_words

# Of the `model` section: what says nothing about the logits of one document.
OF_TRAINING = ("init_std", "document_mask", "multi_token")
SPELLING = ("blocks", "layers", "n_layers", "ffn", "ffns", "ffn_layers")
MOST_REASONS = 8
# Further keys of a model that reads images; those of its text model are in `text_config`.
IMAGE_KEYS = ("boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image", "vision_config")


def read_config(config: Mapping[str, Any], place: str, ignored: Iterable[str] = ()) -> tuple[Family, ModelConfig]:
    """The family and the model that a config.json describes.

    place: of the file, in messages.  ignored: keys that are read as if they were not written, with a dot for one of a
    mapping.
    Raises InteropError, naming the key, for anything that a recipe cannot express.
    """
    ignored = set(ignored)
    for name in sorted(ignored):
        if not _has(config, name):
            raise InteropError(f"--ignore {name}: {place} has no such key")
    path = ""
    if has_encoder(config):
        config, path = _text_config(config, place, ignored), "text_config."
    family = find_family(config.get("model_type"), place)
    if family.own_code:
        ignored.add("auto_map")
    if "auto_map" in config and "auto_map" not in ignored:
        way_out = f"if {family.architecture} of transformers computes the same, give --ignore auto_map"
        raise InteropError(f"{place}: auto_map: the model brings code of its own, which is not run; {way_out}")
    architectures = config.get("architectures")
    if architectures not in (None, [family.architecture]) and "architectures" not in ignored:
        found = architectures[0] if isinstance(architectures, list) and architectures else architectures
        raise InteropError(f"{place}: architectures: must be {family.architecture}; found {shorten(found)}")
    keys = Keys(config, place, family.defaults, ignored, path)
    section = family.read(keys)
    keys.finish()
    try:
        return family, ModelConfig.model_validate_json(json.dumps(section), strict=True)
    except ValidationError as error:
        value = error.errors(include_url=False)[0]["input"]
        found = "this config" if isinstance(value, BaseModel) else shorten(value)
        why = first_mistake(error, "model")
        raise InteropError(f"{place}: no recipe can have this model: {why}; found {found}") from error


def has_encoder(config: Mapping[str, Any]) -> bool:
    """Whether the model reads images as well, and its text model is of a family: only that is read."""
    return isinstance(config.get("model_type"), str) and config["model_type"] in TEXT_MODELS


def _text_config(config: Mapping[str, Any], place: str, ignored: set[str]) -> dict[str, Any]:
    """The config of the text model of a model that reads images.  Raises InteropError if other keys may change it."""
    keys = Keys(config, place, {}, ignored)
    text = keys.mapping("text_config")
    if text is None:
        keys.refuse("text_config", "must be a mapping")
    for name in IMAGE_KEYS:
        keys.value(name, None)
    text = {"model_type": TEXT_MODELS[config["model_type"]], **text}
    tied = text.get("tie_word_embeddings", find_family(text["model_type"], place).defaults["tie_word_embeddings"])
    keys.only("tie_word_embeddings", tied, "it is that of text_config")
    keys.finish()
    return text


def _has(config: Mapping[str, Any], path: str) -> bool:
    """Whether a key is written; `rope_scaling.factor` is one of the mapping rope_scaling."""
    first, _, rest = path.partition(".")
    inside = config.get(first)
    return path in config or (bool(rest) and isinstance(inside, Mapping) and _has(inside, rest))


def write_config(name: str, model: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family of that `model_type`, and the config.json of a model.

    Raises InteropError that names what the family cannot have: the config is read back, and must describe the same.
    """
    family = family_to_write(name)
    config = family.write(model)
    try:
        _, found = read_config(config, name)
    except InteropError as error:
        raise InteropError(f"{name}: has no such model: {error}") from error
    different = list(differences(facts(model), facts(found)))
    if not different and family.multi_token:
        written = {theirs.name for rule in family.rules(model) for theirs in rule.theirs}
        different = list(differences(_modules(model), _modules(family.as_stored(found, written))))
    if different:
        raise InteropError("\n".join(_reasons(name, different)))
    return family, config


def _reasons(name: str, different: list[tuple[str, Any, Any]]) -> Iterator[str]:
    for key, ours, theirs in different[:MOST_REASONS]:
        ours, theirs = in_words(ours, theirs)
        yield f"{name}: cannot have this model: {key} is {ours}; in {name} it is {theirs}"
    if len(different) > MOST_REASONS:
        yield f"{name}: and {len(different) - MOST_REASONS} more differences"


def facts(model: ModelConfig) -> dict[str, Any]:
    """Everything that the logits of one document depend on, in a form in which equal models are equal."""
    around = model.model_dump(mode="json", exclude={*OF_TRAINING, *SPELLING})
    layers = [_layer_facts(layer) for layer in model.expanded()]
    return {**around, "layers": layers}


def _modules(model: ModelConfig) -> dict[str, Any]:
    """The layers of the modules of `multi_token`, on which no logits depend."""
    return {"multi_token": [_layer_facts(layer) for layer in model.multi_token_layers()]}


def _layer_facts(layer: Any) -> dict[str, Any]:
    point = layer.mixer.attention
    if point is None:
        return {"mixer": _plain(layer.mixer.settings), "ffn": _ffn_facts(layer.feed_forward)}
    values = {field.name: getattr(point.projection, field.name) for field in fields(point.projection)}
    position = values.pop("position")
    projection = {name: _plain(value) for name, value in (values | rope_facts(position)).items()}
    projection["score_scale"] = point.projection.scale
    if not projection.get("qk_norm", True):
        projection = {k: v for k, v in projection.items() if k != "norm_eps" and not k.startswith("qk_norm_")}
    if not position.rotates:
        projection = {k: v for k, v in projection.items() if k == "rope" or not k.startswith("rope")}
    others = {field.name: _plain(getattr(point, field.name)) for field in fields(point)}
    patterns = [pattern.model_dump(mode="json") for pattern in point.patterns]
    return {**others, "projection": projection, "patterns": patterns, "ffn": _ffn_facts(layer.feed_forward)}


def _ffn_facts(ffn: Any) -> dict[str, Any]:
    """Losses of its own and the step of its bias train the router; of these, logits depend on there being a bias."""
    found = ffn.model_dump(mode="json", exclude={"balance_loss", "z_loss"})
    return found | {"balance_rate": bool(found["balance_rate"])} if "balance_rate" in found else found


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
