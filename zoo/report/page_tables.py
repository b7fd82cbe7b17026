"""The two tables of a comparison's page: architectures as columns, and trained runs as rows. No torch."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from zoo.report.html import escape, sample, scrolled
from zoo.report.rows import Row, Value

_LENGTHS = (
    "Attention's FLOPs, the caches and the reach are arithmetic: beyond a recipe's max_seq_len they say what it would "
    "cost, not that the model works there. Nominal counts keys and values of every layer at every token, as papers do; "
    "allocated is the size of the cache tensors, with ring buffers and pooled entries. Ratios are to the first column."
)


def costs(columns: list[dict], made: Sequence[Row]) -> str:
    """Everything but training; rows that are equal in all columns are folded behind a button."""
    heads = "".join(
        f"<th scope=col data-place={n}>{'' if c['error'] else sample(n)}{escape(c['label'])}</th>"
        for n, c in enumerate(columns)
    )
    lines = "".join(_cost_lines(columns, made))
    n_equal = sum(map(_equal, made))
    button = (
        f"<p><button class=fold aria-expanded=false data-n={n_equal}>"
        f"Show {n_equal} row{'s' * (n_equal != 1)} that {'are' if n_equal != 1 else 'is'} equal in all columns"
        "</button></p>"
    )
    table = f"<table id=costs><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    about = f"<p class=dim>{_LENGTHS} A row's name orders the columns by it.</p>"
    return (button if n_equal else "") + scrolled(table) + about


def _equal(row: Row) -> bool:
    """Whether a row says the same of every column that has numbers."""
    shown = [value for value in row.values if value is not None]
    return len(shown) > 1 and len({(value.number, value.text) for value in shown}) == 1


def _cost_lines(columns: list[dict], made: Sequence[Row]) -> Iterator[str]:
    if any(column["error"] for column in columns):
        cells = (
            f"<td class=failed data-place={n}>{escape(c['error'])}</td>" if c["error"] else f"<td data-place={n}></td>"
            for n, c in enumerate(columns)
        )
        yield f"<tr><th scope=row>failed</th>{''.join(cells)}</tr>"
    for group, rows in groupby(made, key=lambda row: row.group):
        together = list(rows)
        kind = "group equal" if all(map(_equal, together)) else "group"
        yield f"<tr class='{kind}'><th scope=rowgroup colspan={len(columns) + 1}>{escape(group)}</th></tr>"
        for row in together:
            values = "".join(_cell(value, place, place == 0) for place, value in enumerate(row.values))
            folded = " class=equal" if _equal(row) else ""
            yield f"<tr{folded}><th scope=row><button class=sort>{escape(row.label)}</button></th>{values}</tr>"


def runs(columns: list[dict], made: Sequence[Row]) -> str:
    """A line for each run; a heading orders them."""
    heads = "".join(f"<th scope=col><button class=sort>{escape(row.label)}</button></th>" for row in made)
    lines = (
        f"<tr data-place={place}><th scope=row>{sample(place)}{escape(column['label'])}</th>"
        f"{''.join(_cell(row.values[place], first=place == 0) for row in made)}</tr>"
        for place, column in enumerate(columns)
        if column.get("run")
    )
    head = f"<thead><tr><th scope=col>run</th>{heads}</tr></thead>"
    return scrolled(f"<table id=runs>{head}<tbody>{''.join(lines)}</tbody></table>")


def _cell(value: Value | None, place: int | None = None, first: bool = False) -> str:
    """first: of the first column, to which all ratios are."""
    where = "" if place is None else f" data-place={place}"
    if value is None:
        return f"<td{where}>–</td>"
    number = "" if value.number is None else f' data-n="{value.number:.12g}" title="{value.number:,.6g}"'
    ratio = f"<small>{value.ratio_text}</small>" if value.ratio is not None and not first else ""
    return f"<td{where}{number}>{escape(value.text)}{ratio}</td>"
