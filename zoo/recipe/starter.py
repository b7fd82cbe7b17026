"""`zoo init`: a commented recipe to begin with, and the JSON Schema for editors in the same folder. No torch."""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from zoo.blocks import registry
from zoo.errors import RecipeError, ZooError, did_you_mean, shorten
from zoo.files import FileError, make_folder, read_json, write_text
from zoo.recipe import shipped
from zoo.recipe.schema import TITLE, recipe_schema
from zoo.recipe.yaml_reader import read_recipe, scalar
from zoo.terminal import called_as, clean

SCHEMA_FILE = "recipe.schema.json"
WIDTH, CONTEXT, FEED_FORWARD = 128, 256, {"kind": "swiglu", "d_ff": 352}
BLOCKS = {
    "local": {"kind": "window", "n_heads": 4, "n_kv_heads": 2, "window": 64},
    "global": {"kind": "full", "n_heads": 4, "n_kv_heads": 2},
}
LAYERS = "(local*3 global)*2"

_HEAD = """\
# yaml-language-server: $schema={schema}
# zoo show {file}: layers, parameters, FLOPs, cache
# zoo train {file}: train it, or continue where it stopped
name: {name}  # also the name of the run's folder in runs/
summary: {summary}
"""
_WHOLE = """\
seed: 17
model:
  d_model: {width}  # width of the residual stream
  vocab_size: 264  # at least the tokens of data.tokenizer: 257 for bytes
  max_seq_len: {context}  # longest context, in tokens
  ffn: {ffn}  # of every layer; zoo parts ffns lists the kinds
  blocks:  # attention blocks, by names of your own; zoo blocks lists the kinds
{blocks}
  layers: {layers}  # which block each layer uses, from the bottom up
data:
  source: {{kind: python-stdlib}}  # the source files of Python's own library: no download
  # source: {{kind: text, paths: [my_texts]}}  your own files, folders or globs
  tokenizer: {{kind: byte}}  # one token a byte
  # tokenizer: {{kind: bpe, vocab_size: 4096}}  learnt from the text; needs model.vocab_size: 4096
train:
  duration: 250ba  # batches; or tokens (10Mtok), or epochs (2ep)
  batch_size: 16  # rows of a batch
  optimizer: {{lr: 0.003, weight_decay: 0.1}}
  schedule: {{kind: cosine, warmup: 20ba, final_lr_ratio: 0.1}}
eval:
  every: 0.2dur  # the validation loss, five times in the run
  batches: 16
"""
_EXTENDING = """\
extends: {base}
# The keys of this file are laid over those of {base}. Some that are often changed:
# model:
#   layers: ...                                the schedule
#   max_seq_len: 512                           longest context, in tokens
# data:
#   source: {{kind: text, paths: [my_texts]}}    your own files, folders or globs
# train:
#   duration: 500ba                            batches; or tokens (10Mtok), or epochs (2ep)
"""
_COMMENT = re.compile(r"^(?!#)(.*\S)  # ", re.MULTILINE)


class StarterError(ZooError):
    """A starter recipe that cannot be written; the message says why, and what to do."""

    exit_code = 2


def write_starter(where: Path, source: str | None = None) -> str:
    """Write a recipe and its schema; return what to say about it.

    where: a file, if it ends in .yaml or .yml; otherwise a folder, which is made, for recipe.yaml.
    source: a kind of block, or a recipe of the package with or without `zoo:`; None: windows and full attention.
    Raises StarterError if the file is there already, and for an unknown source.
    """
    path = where if where.suffix in (".yaml", ".yml") else where / "recipe.yaml"
    if os.path.lexists(path):
        raise StarterError(f"{path}: exists already, and zoo init overwrites nothing; name another file or folder")
    text = _text(path, source)
    make_folder(path.parent, StarterError)
    schema = path.with_name(SCHEMA_FILE)
    written = _write_schema(schema)
    write_text(path, text)
    command = called_as()
    also = f" and {schema}, which editors check it against" if written else f"; {schema} is kept as it was"
    return f"wrote {path}{also}\ntry next:   {command} show {path}\n            {command} train {path}"


def _text(path: Path, source: str | None) -> str:
    stem = path.parent.absolute().name if path.stem == "recipe" else path.stem
    name = re.sub("[^A-Za-z0-9._-]+", "_", stem).lstrip("._-")[:100] or "mine"
    written = name if isinstance(scalar(name), str) else f"'{name}'"  # a folder may be called 2026, or null
    head = {"schema": SCHEMA_FILE, "file": clean(path.name), "name": written}
    if source is None:
        about = "Three layers of windows to one of full attention"
        return _filled(_HEAD + _WHOLE, **head, summary=about, **_model(BLOCKS, LAYERS, FEED_FORWARD))
    kinds = [kind for kind, _ in registry.block_kinds()]
    if source in kinds:
        return _filled(_HEAD + _WHOLE, **head, summary=f"Layers of {source}", **_model(*_of_kind(source)))
    base = shipped.canonical(source)
    if shipped.find(base) is None:
        near = did_you_mean(source, [*kinds, *shipped.names()])
        listed = f"no block kind ({', '.join(kinds)}) and no recipe that zoo recipes lists: {shorten(source)}"
        raise StarterError(f"--from: {listed}.{near}")
    return _filled(_HEAD + _EXTENDING, **head, summary=f"{base} with changes", base=base)


def _filled(template: str, **values: Any) -> str:
    """The template with its values, the comments at the ends of lines one below another."""
    return _COMMENT.sub(lambda found: f"{found[1]:<34} # ", template.format(**values))


def _of_kind(kind: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Blocks, schedule and feed-forward for a kind: those of its tiny recipe, else of its example."""
    try:
        model = read_recipe(f"{shipped.PREFIX}tiny/{kind}").plain()["model"]
        return model["blocks"], model["layers"], model["ffn"]
    except RecipeError:
        fields = {"kind": kind, **registry.config_class(kind).about.example}
        return {kind: fields}, f"{kind}*4", FEED_FORWARD


def _model(blocks: dict[str, Any], layers: Any, ffn: dict[str, Any]) -> dict[str, Any]:
    lines = [f"    {name}: {_flow(fields)}" for name, fields in blocks.items()]
    shown = layers if isinstance(layers, str) else _flow(layers)
    return {"blocks": "\n".join(lines), "layers": shown, "ffn": _flow(ffn), "width": WIDTH, "context": CONTEXT}


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()


def _write_schema(path: Path) -> bool:
    """Write the schema unless the file is there and is not one of ours; return whether it was written."""
    if os.path.lexists(path):
        try:
            ours = read_json(path).get("title") == TITLE
        except FileError:
            ours = False
        if not ours:
            return False
    write_text(path, json.dumps(recipe_schema(), indent=2) + "\n")
    return True
