"""What `zoo show` prints, as text for people and as JSON for programs. No torch."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from zoo.blocks.config import BlockConfig
from zoo.counting.cache_sizes import cache_sizes
from zoo.counting.model_cost import model_cost
from zoo.json_text import json_text
from zoo.recipe import ModelConfig, Recipe
from zoo.recipe.layer_fields import describe
from zoo.report.colours import Look, looks, patterns_of
from zoo.report.strips import strip
from zoo.tables import Table, Text, has_colours, rendered
from zoo.training.names import frozen_parameters

CONTEXTS = (8192, 32768)  # in the JSON of every model, in addition to its own `contexts`
FAR = 131_072  # tokens, to which `contexts` goes beyond a model's own max_seq_len
MAX_ROWS = 256  # of the table of layers


def description(config: BlockConfig, part: str | None, d_model: int) -> str:
    """`MLA, window 512`: projection and patterns of a layer; only the kind where a block is no point of the grid."""
    return config.resolve(d_model, part=part).describe()


def facts(recipe: Recipe) -> dict[str, Any]:
    """Everything `zoo show --json` prints. Bytes are those of a bf16 cache, FLOPs of a forward pass at max_seq_len."""
    model = recipe.model
    lengths = sorted({*CONTEXTS, *contexts(model)})
    at = {seq_len: model_cost(model, seq_len) for seq_len in (model.max_seq_len, *lengths)}
    cost = at[model.max_seq_len]
    layers = [
        {
            "index": layer.index,
            "block": layer.block,
            "kind": layer.kind,
            "attention": layer.mixer.describe(),
            "patterns": patterns_of(layer.mixer),
            "kv_layer": layer.kv_layer,
            "ffn": layer.ffn_name,
            "feed_forward": layer.feed_forward.describe(),
        }
        for layer in model.expanded()
    ]
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "layers": layers,
        "around_layers": describe(model),
        "parameters": cost.parameters,
        "active_parameters": cost.active_parameters,
        "frozen_parameters": frozen_parameters(recipe),
        "max_seq_len": model.max_seq_len,
        "flops_per_token": cost.flops_per_token,
        "flops_by_part": cost.flops_by_part,
        "cache": {
            "nominal_bytes_per_token": _whole(at[CONTEXTS[0]].nominal_bytes_per_token),
            "nominal_bytes": {str(seq_len): at[seq_len].cache_nominal_bytes for seq_len in lengths},
            "held_bytes": {str(seq_len): at[seq_len].cache_held_bytes for seq_len in lengths},
            "by_kind": cache_by_kind(model, lengths),
        },
    }


def cache_by_kind(model: ModelConfig, seq_lens: Iterable[int]) -> dict[str, dict[str, Any]]:
    """Bytes of a bf16 cache of one row, and bytes per token, of all layers of each kind at each length."""
    at = {seq_len: cache_sizes(model, seq_len) for seq_len in seq_lens}
    return {
        kind: {
            "layers": size.layers,
            "nominal_bytes_per_token": _whole(size.nominal_bytes_per_token),
            "held_bytes_per_token": {str(n): sizes[kind].held_bytes_per_token for n, sizes in at.items()},
            "nominal_bytes": {str(n): sizes[kind].nominal_bytes for n, sizes in at.items()},
            "held_bytes": {str(n): sizes[kind].held_bytes for n, sizes in at.items()},
        }
        for kind, size in next(iter(at.values())).items()
    }


def as_json(recipe: Recipe, run: dict[str, Any] | None = None) -> str:
    """`facts` as JSON text.  run: the state of the recipe's run, if there is one."""
    return json_text(facts(recipe) | ({"run": run} if run else {}))


def as_text(recipe: Recipe, width: int | None = None, run: str | None = None) -> str:
    """The strip of layers, the layers as a table, parameters, FLOPs and cache, for a terminal.

    run: a line on the recipe's run, if there is one.
    """
    found = facts(recipe)
    seen = looks(found["layers"])
    title = Text(recipe.name, style="bold")
    if recipe.summary:
        title.append(f"  {recipe.summary}", style="not bold")
    parts: list[Table | Text] = [
        title,
        *([Text(run)] if run else []),
        Text(),
        strip([seen[layer["attention"]] for layer in found["layers"]], _count(found["layers"]), has_colours()),
        Text(),
        _layer_table(recipe, found["layers"], seen),
    ]
    if found["around_layers"]:
        parts += [Text(), Text("; ".join(found["around_layers"]))]
    return rendered(
        [*parts, Text(), _size_table(found), Text(), _cache_table(found["cache"], contexts(recipe.model))], width
    )


def _count(layers: list[dict]) -> str:
    return f"{len(layers):,} layer{'s' * (len(layers) != 1)}  "


def _layer_table(recipe: Recipe, layers: list[dict], seen: dict[str, Look]) -> Table:
    """A line for each layer; of feed-forwards only where layers have different ones."""
    several = ("ffn", "feed-forward", "parameters") if recipe.model.ffns else ()
    table = Table("layer", "", "block", "kind", "attention", "parameters", *several)
    for column in (0, 5, *([8] if several else [])):
        table.columns[column].justify = "right"
    count = cache(lambda mixer: mixer.cost(1).total_parameters)
    count_ffn = cache(lambda ffn: ffn.parameters(recipe.model.d_model))
    for layer, row in zip(recipe.model.expanded()[:MAX_ROWS], layers, strict=False):
        cell = Text.assemble(*seen[row["attention"]].cell())
        cells = [row["block"], row["kind"], row["attention"], f"{count(layer.mixer):,}"]
        cells += [row["ffn"], row["feed_forward"], f"{count_ffn(layer.feed_forward):,}"] if several else []
        table.add_row(str(row["index"]), cell, *cells)
    if len(layers) > MAX_ROWS:
        table.add_row("", Text("..."), f"{len(layers) - MAX_ROWS:,} more", "", "--json lists every layer", "")
    return table


def _size_table(found: dict) -> Table:
    table = Table("", "parameters", f"forward FLOPs per token at {found['max_seq_len']:,}")
    for column in table.columns[1:]:
        column.justify = "right"
    flops = {**found["flops_by_part"], "total": found["flops_per_token"]}
    for part, count in found["parameters"].items():
        table.add_row(part, f"{count:,}", f"{flops[part]:,.0f}" if flops.get(part) else "")
    if found["active_parameters"] != found["parameters"]["total"]:
        table.add_row("active", f"{found['active_parameters']:,}", "")
    if found["frozen_parameters"]:
        table.add_row("frozen", f"{found['frozen_parameters']:,}", "")
    return table


def contexts(model: ModelConfig) -> tuple[int, ...]:
    """The two lengths of the table of caches: max_seq_len and 4 times as much, or a quarter of it if that is far."""
    own = model.max_seq_len
    return (own, 4 * own) if 4 * own <= FAR else (max(1, own // 4), own)


def _cache_table(cache: dict, lengths: tuple[int, ...]) -> Table:
    """Nominal and allocated, in all and by kind of layer where there are several."""
    headings = [f"{seq_len:,} tokens" for seq_len in lengths], [f"bytes/token at {n:,}" for n in lengths]
    table = Table("cache of one row, bf16", *headings[0], *headings[1])
    for column in table.columns[1:]:
        column.justify = "right"
    kinds = cache["by_kind"] if len(cache["by_kind"]) > 1 else {}
    for name, shown in (("nominal", "nominal"), ("held", "allocated")):
        of_kinds = {f"  {found['layers']} x {kind}": found for kind, found in kinds.items()}
        for label, found in {shown: cache, **of_kinds}.items():
            sizes = {seq_len: found[f"{name}_bytes"][str(seq_len)] for seq_len in lengths}
            per_token = (f"{size / seq_len:,.0f}" for seq_len, size in sizes.items())
            table.add_row(label, *map(_size, sizes.values()), *per_token)
    return table


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def first_line(config: type) -> str:
    """The first sentence of what a config's docstring says."""
    return (config.__doc__ or "").strip().split("\n")[0]


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number
