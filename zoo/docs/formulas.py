"""What a block costs as formulas: arithmetic in field names, shown as LaTeX and held to `cost`. No torch.

A formula is a Python expression with + - * / // %, min, max, ceil, and sum over a range. It is written in field names
and shown in the symbols of the field descriptions.
"""

import ast
import math
from collections.abc import Iterable, Mapping

from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.cost import Cost
from zoo.errors import ZooError

SYMBOLS = {
    "seq_len": "T",
    "d_model": "D",
    "n_heads": "H",
    "n_kv_heads": "K",
    "head_dim": "d_n",
    "rope_dim": "d_r",
    "v_head_dim": "d_v",
    "kv_rank": "r",
    "q_rank": "r_q",
    "n_latent_heads": "C",
    "window": "w",
    "compression_block": "l",
    "compression_stride": "s",
    "selection_block": "b",
    "n_selected": "n",
    "query_group": "q",
    "n_patterns": "P",
}
_FUNCTIONS = {"min": min, "max": max, "sum": sum, "range": range, "ceil": math.ceil}
_SLOTS = "ceil(seq_len/compression_stride)"


def of_grid_point(point: AttentionConfig) -> dict[str, str]:
    """The formulas of a projection with patterns, by `parameters.PART`, `flops.PART`, `cache.nominal`, `cache.held`.

    Parts that only a setting other than the default brings (MLP pooling, keys pooled before rotation) have none.
    """
    latent = point.projection.kind != "gqa"
    weights = _weights(point)
    rows = {"key_value_up": f"({_expanded(point)})"}  # every other map multiplies each token once
    flops = {part: f"2*{rows.get(part, 'seq_len')}*({formula})" for part, formula in weights.items()}
    flops |= _pattern_flops(point, "(head_dim + rope_dim)" if latent else "head_dim")
    parameters = weights | _norms(point)
    entry = "(kv_rank + rope_dim)" if latent else "n_kv_heads*(head_dim + v_head_dim)"
    sets = "n_patterns*" if point.separate_kv else ""
    cache = {"nominal": f"{sets}{entry}*seq_len"}
    compression = point.pattern("compression")
    if compression is None or compression.pool_rotated:
        pooled = f" + {_SLOTS}" if compression else ""
        cache["held"] = f"{entry}*({_kept(point)}{pooled})"
    groups = {"parameters": parameters, "flops": flops, "cache": cache}
    return {f"{group}.{part}": formula for group, parts in groups.items() for part, formula in parts.items()}


def _weights(point: AttentionConfig) -> dict[str, str]:
    if point.projection.kind == "gqa":
        width, entry = "head_dim", "n_kv_heads*(head_dim + v_head_dim)"
    else:
        width, entry = "(head_dim + rope_dim)", "(kv_rank + rope_dim)"
    rank = getattr(point.projection, "q_rank", None)
    sets = "n_patterns*" if point.separate_kv else ""
    weights = {
        "query": f"d_model*q_rank + q_rank*n_heads*{width}" if rank else f"d_model*n_heads*{width}",
        "key_value": f"{sets}d_model*{entry}",
    }
    if point.projection.kind != "gqa":
        weights["key_value_up"] = "(kv_rank/n_latent_heads)*n_kv_heads*(head_dim + v_head_dim)"
    if len(point.patterns) > 1:
        weights["gate"] = "d_model*n_heads*n_patterns"
    return weights | {"output": "n_heads*v_head_dim*d_model"}


def _norms(point: AttentionConfig) -> dict[str, str]:
    if point.projection.kind != "gqa":
        return {"norm": "kv_rank + q_rank" if point.projection.q_rank else "kv_rank"}
    if not point.projection.qk_norm:
        return {}
    return {"norm": "(1 + n_patterns)*head_dim" if point.separate_kv else "2*head_dim"}


def _expanded(point: AttentionConfig) -> str:
    """How many keys and values are made from latents: the tokens, the pooled entries, or both."""
    kinds = {pattern.kind for pattern in point.patterns}
    terms = ["seq_len"] * bool(kinds - {"compression"}) + [_SLOTS] * ("compression" in kinds)
    return " + ".join(terms)


def _pattern_flops(point: AttentionConfig, width: str) -> dict[str, str]:
    """2 (d_qk + d_v) for each head and each pair of a query and a key it sees; 2 d_qk for a pair that is scored."""
    pairs = {
        "full": "seq_len*(seq_len + 1)/2",
        "window": "sum(min(t + 1, window) for t in range(seq_len))",
        "compression": f"sum(max(0, seq_len - j*compression_stride - compression_block + 1) for j in range({_SLOTS}))",
        "selection": "sum(min(n_selected - 1, t//selection_block)*selection_block + t % selection_block + 1"
        " for t in range(seq_len))",
    }
    inner, flops = width.strip("()"), {}
    for pattern in point.patterns:
        if pattern.kind == "selection":
            flops["choice"] = f"2*n_heads*{width}*{_scored_pairs(pattern.query_group)}"
        flops[pattern.kind] = f"2*n_heads*({inner} + v_head_dim)*{pairs[pattern.kind]}"
    return flops


def _scored_pairs(query_group: int) -> str:
    """Compression blocks in the past of the queries that choose, the first of every group."""
    if query_group == 1:
        return f"sum(max(0, seq_len - j*compression_stride - compression_block + 1) for j in range({_SLOTS}))"
    first = "ceil((j*compression_stride + compression_block - 1)/query_group)"
    return f"sum(max(0, ceil(seq_len/query_group) - {first}) for j in range({_SLOTS}))"


def _kept(point: AttentionConfig) -> str:
    """Tokens that the cache holds: what any pattern may still read, or the sum where each has keys of its own."""
    each = {"window": "min(seq_len, window)", "compression": "min(seq_len, compression_block)"}
    kept = [each.get(pattern.kind, "seq_len") for pattern in point.patterns]
    if point.separate_kv:
        return " + ".join(kept)
    if "seq_len" in kept:
        return "seq_len"
    return kept[0] if len(kept) == 1 else f"max({', '.join(kept)})"


def names_of(config: BlockConfig, point: AttentionConfig | None, d_model: int, seq_len: int) -> dict[str, int]:
    """The value of every name that a formula may use, of one block on one row."""
    values = dict(config)
    if point is not None:
        for part in (point.projection, *point.patterns):
            values |= {name: getattr(part, name) for name in SYMBOLS if hasattr(part, name)} | dict(part)
        values["n_patterns"] = len(point.patterns)
    return values | {"d_model": d_model, "seq_len": seq_len}


def check(formulas: Mapping[str, str], cost: Cost, values: Mapping[str, int], kind: str) -> None:
    """Raise ZooError unless every formula gives what `cost` counts; a page never shows one that does not."""
    counted = counts(cost)
    for name, formula in formulas.items():
        found = evaluate(formula, values)
        wanted = counted.get(name, 0)  # parts that count nothing are left out of a cost
        if abs(found - wanted) > 1e-9 * max(1.0, wanted):
            raise ZooError(f"{kind}: formula {name} = {formula} gives {found}; cost counts {wanted}")


def counts(cost: Cost) -> dict[str, float]:
    """A cost by the names of formulas."""
    found: dict[str, float] = {f"parameters.{part}": count for part, count in cost.parameters.items()}
    found |= {f"flops.{part}": count for part, count in cost.flops.items()}
    return found | {"cache.nominal": cost.cache_nominal_elements, "cache.held": cost.cache_held_elements}


def evaluate(formula: str, values: Mapping[str, int]) -> float:
    """The value of a formula. Raises ZooError if it names something unknown."""
    try:
        return eval(formula, {"__builtins__": _FUNCTIONS, **values})
    except (NameError, TypeError, SyntaxError) as error:
        raise ZooError(f"formula {formula!r}: {error}") from error


def names_in(formulas: Iterable[str]) -> list[str]:
    """The field names that formulas use, those with a symbol first, in the order of SYMBOLS."""
    used: set[str] = set()
    for formula in formulas:
        nodes = list(ast.walk(ast.parse(formula, mode="eval")))
        bound = {node.target.id for node in nodes if isinstance(node, ast.comprehension)}
        used |= {node.id for node in nodes if isinstance(node, ast.Name)} - bound - set(_FUNCTIONS)
    return [name for name in SYMBOLS if name in used] + sorted(used - set(SYMBOLS))


def symbol(name: str) -> str:
    """LaTeX of a field name."""
    return SYMBOLS.get(name) or rf"\text{{{name}}}"


def latex(formula: str) -> str:
    """LaTeX of a formula."""
    return _latex(ast.parse(formula, mode="eval").body)


_SUM, _PRODUCT, _ATOM = 1, 2, 3  # how tightly a piece of LaTeX binds


def _latex(node: ast.AST, wanted: int = _SUM) -> str:
    text, binds = _piece(node)
    return text if binds >= wanted else f"({text})"


def _piece(node: ast.AST) -> tuple[str, int]:
    """(LaTeX, how tightly it binds) of an expression."""
    match node:
        case ast.Constant(value=value):
            return f"{value:,}", _ATOM
        case ast.Name(id=name):
            return (name if len(name) == 1 else symbol(name)), _ATOM
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return f"{_latex(left)} + {_latex(right)}", _SUM
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return f"{_latex(left)} - {_latex(right, _PRODUCT)}", _SUM
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return rf"{_latex(left, _PRODUCT)} \, {_latex(right, _PRODUCT)}", _PRODUCT
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return rf"\frac{{{_latex(left)}}}{{{_latex(right)}}}", _PRODUCT
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            return rf"\lfloor {_latex(left, _PRODUCT)} / {_latex(right, _ATOM)} \rfloor", _ATOM
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            return rf"({_latex(left, _PRODUCT)} \bmod {_latex(right, _ATOM)})", _ATOM
        case ast.Call(func=ast.Name(id="ceil"), args=[ast.BinOp(left=left, op=ast.Div(), right=right)]):
            return rf"\lceil {_latex(left, _PRODUCT)} / {_latex(right, _ATOM)} \rceil", _ATOM
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=arguments):
            return rf"\{name}({', '.join(map(_latex, arguments))})", _ATOM
        case ast.Call(func=ast.Name(id="sum"), args=[ast.GeneratorExp(elt=term, generators=[loop])]):
            (end,) = loop.iter.args
            limits = rf"_{{{loop.target.id} = 0}}^{{{_latex(end)} - 1}}"
            return rf"\sum{limits} {_latex(term, _PRODUCT)}", _PRODUCT
    raise ZooError(f"a formula cannot hold {ast.unparse(node)}")
