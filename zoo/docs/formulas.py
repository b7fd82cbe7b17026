"""What a block costs as formulas: arithmetic in field names, shown as LaTeX and held to `cost`. No torch.

A formula is a Python expression with + - * / // %, min, max, ceil, and sum over a range. It is written in field names
and shown in the symbols of the field descriptions.
"""

import ast
import math
from collections.abc import Iterable, Mapping

from zoo.blocks.config import BlockConfig
from zoo.blocks.cost import Cost
from zoo.blocks.resolved import ResolvedAttention
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
    "chunk": "m",
    "compression_block": "l",
    "compression_stride": "s",
    "selection_block": "b",
    "n_selected": "n",
    "query_group": "q",
    "n_patterns": "P",
}
_FUNCTIONS = {"min": min, "max": max, "sum": sum, "range": range, "ceil": math.ceil}


def of_attention(point: ResolvedAttention) -> dict[str, str]:
    """The formulas of a projection with patterns, by `parameters.PART`, `flops.PART`, `cache.nominal`, `cache.held`.

    Parts that only a setting other than the default brings (MLP pooling, keys pooled before rotation) have none.
    """
    projection = point.projection
    weights = projection.weight_formulas(point.separate_kv)
    if len(point.patterns) > 1:
        weights["gate"] = "d_model*n_heads*n_patterns"
    if point.output_gates:
        weights["output_gate"] = "d_model*n_heads" + ("*v_head_dim" if point.output_gate == "channel" else "")
    weights["output"] = "n_heads*v_head_dim*d_model"
    rows = {"key_value_up": f"({_expanded(point)})"}  # every other map multiplies each token once
    flops = {part: f"2*{rows.get(part, 'seq_len')}*({formula})" for part, formula in weights.items()}
    for pattern in point.patterns:
        flops |= pattern.flops_formulas(point)
    norm = projection.norm_formula(point.separate_kv)
    biases = [projection.bias_formula(point.separate_kv), "d_model" if point.output_bias else ""]
    biases.append("n_heads*n_patterns" if point.gate_bias and len(point.patterns) > 1 else "")
    bias = " + ".join(filter(None, biases))
    sinks = {"sinks": "n_heads"} if projection.sinks else {}
    parameters = weights | sinks | ({"norm": norm} if norm else {}) | ({"bias": bias} if bias else {})
    sets = "n_patterns*" if point.separate_kv else ""
    cache = {"nominal": f"{sets}{projection.entry_formula}*seq_len"}
    pooled = [pattern.pooled_formula for pattern in point.patterns]
    if None not in pooled:
        held = " + ".join([_kept(point), *(formula for formula in pooled if formula)])
        cache["held"] = f"{projection.entry_formula}*({held})"
    groups = {"parameters": parameters, "flops": flops, "cache": cache}
    return {f"{group}.{part}": formula for group, parts in groups.items() for part, formula in parts.items()}


def _expanded(point: ResolvedAttention) -> str:
    """How many keys and values are made from cached entries: the tokens, those that patterns make, or both."""
    made = [pattern.made_keys_formula for pattern in point.patterns if pattern.made_keys_formula]
    return " + ".join(["seq_len"] * any(pattern.reads_tokens for pattern in point.patterns) + made)


def _kept(point: ResolvedAttention) -> str:
    """Tokens that the cache holds: what any pattern may still read, or the sum where each has keys of its own."""
    kept = [pattern.kept_formula for pattern in point.patterns]
    if point.separate_kv:
        return " + ".join(kept)
    if "seq_len" in kept:
        return "seq_len"
    return kept[0] if len(kept) == 1 else f"max({', '.join(kept)})"


def names_of(config: BlockConfig, point: ResolvedAttention | None, d_model: int, seq_len: int) -> dict[str, int]:
    """The value of every name that a formula may use, of one block on one row."""
    filled = config.filled(d_model) if hasattr(config, "filled") else {}
    values = {**dict(config), **filled}
    if point is not None:
        for part in (point.projection, *point.patterns):
            values |= vars(part)
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
    cache = {"nominal": cost.cache_nominal_elements, "held": cost.cache_held_elements}
    if cost.cache_state_elements:
        cache["state"] = cost.cache_state_elements
    return found | {f"cache.{name}": count for name, count in cache.items()}


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
        bound = {ast.unparse(node.target) for node in nodes if isinstance(node, ast.comprehension)}
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
        case ast.Constant(value=int() | float() as value):
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
            assert isinstance(loop.iter, ast.Call)
            (end,) = loop.iter.args
            limits = rf"_{{{ast.unparse(loop.target)} = 0}}^{{{_latex(end)} - 1}}"
            return rf"\sum{limits} {_latex(term, _PRODUCT)}", _PRODUCT
    raise ZooError(f"a formula cannot hold {ast.unparse(node)}")
