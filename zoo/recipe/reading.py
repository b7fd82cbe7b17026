"""Reading a recipe file: every mistake of a file at once, each with file, line, column and key. No torch."""

import copy
import functools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from zoo.data.config import DataConfig
from zoo.errors import Problem, RecipeError
from zoo.recipe import schema
from zoo.recipe.checking import Found, locate, translate
from zoo.recipe.config import Recipe, read_block, read_ffn, read_schedule, section_problems, sections
from zoo.recipe.layer_fields import around_problems
from zoo.recipe.multi_token import MultiToken, multi_token_problems
from zoo.recipe.plain import plain
from zoo.recipe.schedule import Where
from zoo.recipe.schedule_checks import ffn_problems, model_problems
from zoo.recipe.seal import in_run_folder
from zoo.recipe.yaml_reader import Node, put, read_recipe
from zoo.training.config import TrainConfig


def load_recipe(
    path: str | os.PathLike | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    *,
    of_run: bool = False,
    settings: Iterable[tuple[str, Node]] = (),
) -> Recipe:
    """Read and check a recipe.

    path: of a YAML file; or the name of a recipe of the package, `zoo:tiny/full`; or the recipe's content as a mapping
    of plain values, `{"name": "mine", "extends": "zoo:tiny/full", "train": {"duration": "50ba"}}`; or a Recipe.
    overrides: `key.path=value`, as after `--set`.
    settings: (key.path, value) of another file, such as a study, laid over the recipe as `extends` does it.
    of_run: the file is a run folder's, perhaps of somebody else: its plugins are imported only if they are installed
    or were named by the user (which also holds for a file in a run folder, `in_run_folder`), and keys that it lacks
    because it is older have the values of its time.
    Raises RecipeError with every mistake found, each with its place.
    """
    root = read_recipe(plain(path) if isinstance(path, Recipe) else path, overrides)
    for key, value in settings:
        put(root, key.split("."), value, merging=True)
    data = root.plain()
    _drop_unused(data)
    if of_run:
        _add_earlier_defaults(data)
    try:
        context = {"of_run": _of_run(root.value.get("plugins"), root.place.file, of_run)}
        return Recipe.model_validate_json(json.dumps(data), strict=True, context=context)
    except ValidationError as error:
        definitions = functools.cache(schema.schema_definitions)
        found = translate(
            error,
            data,
            lambda at: schema.known_keys(at, data, definitions()),
            elsewhere=lambda at: schema.paths_of(str(at[-1]), at[:-1], definitions()),
        )
        found += [line for line in _partial_problems(data) if line[0] not in {path for path, _, _ in found}]
    problems = dict.fromkeys(locate(line, root) for line in found)
    own = root.place.file
    in_order = sorted(problems, key=lambda p: (p.file != own, p.file or "", p.line or 0, p.column or 0))
    raise RecipeError(in_order, of_keys=True)


def recorded_recipe(data: dict[str, Any]) -> Recipe | None:
    """A recipe as another file keeps it, all keys written out; keys that came later have the values of its time.

    None if it is no recipe of this version.
    """
    data = copy.deepcopy(data)
    _drop_unused(data)
    _add_earlier_defaults(data)
    try:
        return Recipe.model_validate_json(json.dumps(data), strict=True, context={"of_run": True})
    except ValidationError:
        return None


def _add_earlier_defaults(data: dict) -> None:
    """Add keys that an earlier version did not have, with the values it used.

    A default may change between versions; a run keeps the one that it was trained with.
    """
    if isinstance(data.get("train"), dict) and "duration" in data["train"]:
        data["train"].setdefault("residual_stream", "fp32")  # bf16 since 2026-11-29


def load_data_section(path: str | os.PathLike, overrides: Iterable[str] = ()) -> DataConfig:
    """Read and check the `data` section of a recipe, or of a file that has no other; the rest is not looked at.

    Raises RecipeError with every mistake found in the section, each with its place.
    """
    root = read_recipe(path, overrides)
    data = root.plain()
    if not isinstance(data.get("data"), dict):
        raise RecipeError([Problem("is required, and must be a mapping", file=os.fspath(path), key="data")])
    try:
        return DataConfig.model_validate_json(json.dumps(data["data"]), strict=True)
    except ValidationError as error:
        definitions = schema.schema_definitions()
        found = translate(error, data["data"], lambda at: schema.known_keys(("data", *at), data, definitions))
        raise RecipeError([locate((("data", *at), where, why), root) for at, where, why in found]) from error


def _of_run(plugins: Node | None, path: str | os.PathLike, of_run: bool) -> bool:
    """Whether the plugins of a recipe were named by somebody else: neither in the user's own file nor with `--set`."""
    if plugins is None or plugins.place.line is None:
        return False
    return of_run or in_run_folder(path) or in_run_folder(plugins.place.file)


def _drop_unused(data: dict) -> None:
    """Remove keys that no longer exist, if a recipe of an older run folder sets them to what is now always the case."""
    train = data.get("train")
    if isinstance(train, dict) and train.get("compile") is False:
        del train["compile"]


def _partial_problems(data: dict) -> list[Found]:
    """What does not fit together in the parts of a broken recipe that are valid by themselves.

    The sections' own checks of this kind only run once all their fields are valid.
    """
    model: dict = data["model"] if isinstance(data.get("model"), dict) else {}
    named = {key: model[key] if isinstance(model.get(key), dict) else {} for key in ("blocks", "ffns")}
    reads = {"blocks": read_block, "ffns": read_ffn}
    blocks, ffns = (
        {name: config for name, value in named[key].items() if (config := _attempt(reads[key], value))} for key in named
    )
    layers, ffn_layers = (_attempt(read_schedule, model.get(key)) for key in ("layers", "ffn_layers"))
    both = sections(
        blocks,
        layers if named["blocks"] else None,
        ffns,
        ffn_layers if named["ffns"] else None,
        set(named["blocks"]),
        set(named["ffns"]),
    )
    sizes = {name: model.get(name) for name in ("d_model", "n_layers", "vocab_size", "max_seq_len")}
    sizes = {name: value if type(value) is int and value >= 1 else None for name, value in sizes.items()}
    fields = model_problems(*both, sizes["n_layers"], sizes["d_model"], _attempt(read_ffn, model.get("ffn")))
    found: list[Found] = [
        (("model", *path), "value", why)
        for path, why in around_problems(model.get("norm", "rms"), model.get("norm_bias") is True)
    ]
    if "model" in data:
        given = (model.get(key) is not None for key in ("ffn", "ffns", "ffn_layers"))
        found += [(("model", *path), at, why) for path, at, why in ffn_problems(*given)]
    multi_token = _attempt(MultiToken.model_validate, model.get("multi_token"))
    further = multi_token_problems(multi_token, blocks, set(named["blocks"]), set(named["ffns"]))
    found += [(("model", *path), "value", why) for path, why in further]
    for path, at, why in fields:
        inside = at.path if isinstance(at, Where) else ()
        found.append((("model", *path, *inside), at, why))
    if sizes["vocab_size"] and sizes["max_seq_len"]:
        others = {
            name: _attempt(
                lambda value, c=config: c.model_validate_json(json.dumps(value), strict=True), data.get(name, {})
            )
            for name, config in (("data", DataConfig), ("train", TrainConfig))
        }
        found += section_problems(sizes["vocab_size"], sizes["max_seq_len"], others["data"], others["train"])
    return found


def _attempt(make, value: Any) -> Any:
    try:
        return make(value)
    except (ValidationError, ValueError):
        return None
