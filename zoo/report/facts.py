"""Everything a comparison says, as plain data: what `zoo compare --json` prints. No torch."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from zoo.blocks.config import BlockConfig
from zoo.counting.model_cost import ModelCost, model_cost
from zoo.recipe import ModelConfig
from zoo.report import notes, runs, seeds
from zoo.report.colours import patterns_of
from zoo.report.columns import Column, reason
from zoo.report.reach import reach
from zoo.report.settings import settings
from zoo.report.show import FAR, cache_by_kind, description
from zoo.report.verdict import verdict


def default_seq_lens(columns: Sequence[Column]) -> list[int]:
    """Lengths, in tokens, at which to compare, ascending: every shortest and longest `max_seq_len`, and around it.

    Around the longest one are 4 and 16 times as much, as far as this is at most FAR tokens; else a quarter and a
    sixteenth take their places, so that there are three.
    """
    own = [column.known_recipe.model.max_seq_len for column in columns if column.recipe] or [8192]
    longest = max(own)
    beyond = [times * longest for times in (4, 16) if times * longest <= FAR]
    below = [longest // times for times in (4, 16)][: 2 - len(beyond)]
    return sorted({min(own), longest, *beyond, *below})


def comparison(
    columns: Sequence[Column], seq_lens: Sequence[int] = (), measured: Sequence[dict | None] = ()
) -> dict[str, Any]:
    """The facts of each column, the verdict, and the notes on what is not comparable.

    seq_lens: lengths at which costs are stated, default `default_seq_lens`.  Bytes are those of a bf16 cache, FLOPs
    of a forward pass, averaged over the row.  measured: what `measure.measure` found for each column, or None.
    """
    lengths = list(dict.fromkeys(seq_lens)) or default_seq_lens(columns)
    found = [_column(column, lengths) for column in columns]
    for facts, numbers in zip(found, measured, strict=False):
        facts["measured"] = numbers
    said = verdict(columns, found, lengths)
    return {"seq_lens": lengths, "verdict": said, "notes": notes.notes(columns, found), "columns": found}


def _column(column: Column, seq_lens: list[int]) -> dict[str, Any]:
    facts: dict[str, Any] = {"label": column.label, "source": column.source, "error": column.error}
    if column.recipe is None:
        return facts
    facts |= {"name": column.known_recipe.name, "summary": column.known_recipe.summary}
    model = column.known_recipe.model
    try:
        costs = {seq_len: model_cost(model, seq_len) for seq_len in seq_lens}
        facts |= {"layers": _layers(model), "max_seq_len": model.max_seq_len, **_costs(costs)}
        facts["settings"] = settings(model)
        facts["cache"]["by_kind"] = cache_by_kind(model, seq_lens)
        facts["receptive_field"] = {str(length): _reach(model, length) for length in seq_lens}
    except Exception as error:  # a block of another package can raise anything; its column says what
        return {**{name: facts[name] for name in ("label", "source", "name", "summary")}, "error": reason(error)}
    if column.run is not None:
        try:
            members = (column, *column.repeats)
            found = [runs.facts(member) for member in members]
            facts["run"] = seeds.merged(found, members) if column.repeats else found[0]
        except Exception as error:  # damaged files; what its recipe costs is known all the same
            facts["error"] = facts["error"] or reason(error)
    return facts


def _reach(model: ModelConfig, seq_len: int) -> dict[str, Any]:
    found = reach(model, seq_len)
    return {**asdict(found), "text": str(found)}


def _layers(model: ModelConfig) -> list[dict[str, Any]]:
    return [
        {
            "block": layer.block,
            "kind": f"{layer.kind}.{layer.part}" if layer.part else layer.kind,
            "attention": layer.mixer.describe(),
            "patterns": patterns_of(layer.mixer),
            "feed_forward": layer.feed_forward.describe(),
        }
        for layer in model.expanded()
    ]


def _costs(costs: dict[int, ModelCost]) -> dict[str, Any]:
    first = next(iter(costs.values()))
    return {
        "parameters": first.parameters,
        "active_parameters": first.active_parameters,
        "flops_per_token": {str(length): cost.flops_per_token for length, cost in costs.items()},
        "attention_share": {
            str(length): cost.flops_by_part["attention"] / cost.flops_per_token for length, cost in costs.items()
        },
        "cache": {
            "nominal_bytes_per_token": first.nominal_bytes_per_token,
            "nominal_bytes": {str(length): cost.cache_nominal_bytes for length, cost in costs.items()},
            "held_bytes": {str(length): cost.cache_held_bytes for length, cost in costs.items()},
        },
    }


def distinct_blocks(
    columns: Sequence[Column], facts: Sequence[dict[str, Any]]
) -> list[tuple[str, str, tuple[BlockConfig, str | None, int]]]:
    """(kind, attention, (config, part, d_model)) of each block that differs from the others in what a query sees.

    facts: of each column; one that could not be worked out is left out.
    """
    found: dict[tuple[str, str], tuple] = {}
    for column, known in zip(columns, facts, strict=True):
        if "layers" not in known:
            continue
        model = column.known_recipe.model
        for config, part in dict.fromkeys((layer.config, layer.part) for layer in model.expanded()):
            kind = f"{config.kind}.{part}" if part else config.kind
            attention = description(config, part, model.d_model)
            found.setdefault((kind, attention), (kind, attention, (config, part, model.d_model)))
    return list(found.values())
