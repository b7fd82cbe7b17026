"""What is not comparable between the columns, said in sentences that stand on top of a report. No torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from zoo.report.columns import Column, data_read

MOST_PARAMETERS_APART = 0.03
TOKENIZER = ("Other tokenizer:", "Other contents of the same tokenizer:")  # bits per byte compare all the same


def notes(columns: Sequence[Column], facts: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for each difference from the first column (the first that has numbers, if that one has none).

    A column that failed later, in training or measuring, still shows its costs, so its differences are listed too.
    """
    pairs = [(column, found) for column, found in zip(columns, facts, strict=True) if "parameters" in found]
    found: list[str] = []
    if facts and "parameters" not in facts[0]:
        found.append(
            f"{columns[0].label} failed, so nothing is stated as a ratio: ratios are against the first column."
        )
    if len(pairs) > 1 or any(column.repeats for column, _ in pairs):
        found += _parameters(pairs)
        found += _recipes(pairs)
        trained = [(column, known) for column, known in pairs if known.get("run")]
        if trained:
            found += _runs(trained)
    return found


def comparable_score(columns: Sequence[Column], facts: Sequence[dict[str, Any]]) -> str | None:
    """`loss`, or `bits_per_byte` between tokenizers: what the runs with a validation compare by; None if by neither."""
    trained = [
        (column, known)
        for column, known in zip(columns, facts, strict=True)
        if known.get("run") and known["run"]["final"]
    ]
    if not trained:
        return None
    found = [*_recipes(trained), *_what_is_scored([column for column, _ in trained]), *_contents(trained)]
    if not found:
        return "loss"
    return "bits_per_byte" if all(note.startswith(TOKENIZER) for note in found) else None


def _parameters(pairs) -> Iterator[str]:
    (first, base), *others = pairs
    total = base["parameters"]["total"]
    for column, found in others:
        ratio = found["parameters"]["total"] / total
        if abs(ratio - 1) > MOST_PARAMETERS_APART:
            yield f"Other parameter count: {column.label} has {_times(ratio)} times the parameters of {first.label}."


def _recipes(pairs) -> Iterator[str]:
    checks: list[tuple[str, Callable, Callable, str]] = [
        ("Other tokenizer", _tokenizer, _same_tokens, "their losses are per another token; compare bits per byte"),
        ("Other data", _data, _same_rows, "they do not read the same text"),
        ("Other sequence length", _seq_len, lambda *_: False, "later tokens of longer rows are easier to predict"),
    ]
    first, *others = pairs
    for title, read, known_equal, why in checks:
        differing = [one[0].label for one in others if read(one[0]) != read(first[0]) and not known_equal(first, one)]
        if differing:
            yield f"{title}: {', '.join(differing)} against {first[0].label}; {why}."


def _runs(trained) -> Iterator[str]:
    columns = [column for column, _ in trained]
    for title, read in (
        ("Other batch size", lambda c: c.known_recipe.train.rows(_seq_len(c)) * _seq_len(c)),
        ("Other seeds" if any(c.repeats for c in columns) else "Other seed", lambda c: c.seeds),
        (
            "Other optimiser or learning-rate schedule",
            lambda c: (c.known_recipe.train.optimizer, c.known_recipe.train.schedule),
        ),
    ):
        if others := _differing(columns, read):
            yield f"{title}: {', '.join(others)} against {columns[0].label}."
    yield from _what_is_scored(columns)
    yield from _contents(trained)
    known = {column.label: found["run"] for column, found in trained}
    yield from _other_examples(known)
    first = known[columns[0].label]
    for label, run in known.items():
        if run["diverged_at"] is not None:
            yield f"{label} diverged: its loss is not a finite number at batch {run['diverged_at']:,}."
        if run["damage"] is not None:
            yield f"{label} is not whole: {run['damage']}; its numbers are of the weights that training wrote."
        if not run["finished"]:
            yield f"{label} is not finished: {run['batches']:,.0f} batches so far, and no {run['lacks']}."
        if run["tokens"] != first["tokens"]:
            counts = f"{run['tokens']:,} in {label}, {first['tokens']:,} in {columns[0].label}"
            yield f"Other number of training tokens: {counts}."
        if run["environment"] != first["environment"]:
            yield _other_machine(label, run, columns[0].label, first)


def _other_examples(runs: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Tasks whose rows are not the same for all runs that were scored on them."""
    hashes: dict[str, set[str]] = {}
    for run in runs.values():
        for task, metrics in (run.get("evaluation") or {}).items():
            hashes.setdefault(task, set()).update(numbers.get("examples") or "" for numbers in metrics.values())
    if tasks := [task for task, found in hashes.items() if len(found - {""}) > 1]:
        yield (
            f"Other rows in {', '.join(tasks)}: the runs were scored on different rows, because their tokenizers, "
            "contexts, held-out texts or training tasks differ."
        )


def _other_machine(label: str, run: dict[str, Any], first_label: str, first: dict[str, Any]) -> str:
    for name, of in ((label, run), (first_label, first)):
        if not of["environment"]:
            return (
                f"{name} has no environment.json: whether wall times of {label} and {first_label} compare is not known."
            )
    return f"Other machine or precision: wall time of {label} does not compare with that of {first_label}."


def _what_is_scored(columns: Sequence[Column]) -> Iterator[str]:
    """Differences in what validation losses and bits per byte are of."""
    if others := _differing(columns, lambda c: (c.known_recipe.eval.batches, c.known_recipe.train.rows(_seq_len(c)))):
        yield f"Other validation rows: {', '.join(others)} against {columns[0].label}; eval.batches or batches differ."
    if others := _differing(columns, lambda c: c.known_recipe.model.document_mask):
        why = (
            "with it a token sees its own document alone, and runs of versions before data.json did not score the "
            "first token of a document"
        )
        yield f"Other document_mask: {', '.join(others)} against {columns[0].label}; {why}."


def _contents(trained) -> Iterator[str]:
    """Runs whose recipes name the same data and tokenizer, and which read other contents of them."""
    (first, base), *others = trained
    before = _record(base)
    for column, found in others:
        now, pair = _record(found), f"{column.label} against {first.label}"
        if before is None or now is None:
            if before is not now:
                without = column.label if now is None else first.label
                yield f"{without} has no data.json: whether {pair} read the same contents is not known."
            continue
        if _data(column) == _data(first) and not now.same_text(before):
            yield f"Other contents of the same data: {pair}; the files had changed. They do not read the same text."
        if _tokenizer(column) == _tokenizer(first) and not now.same_tokenizer(before):
            yield f"Other contents of the same tokenizer: {pair}; their losses are per another token."


def _same_tokens(one, other) -> bool:
    """Whether two runs are known to have one tokenizer, whatever their recipes call it."""
    (ours, found), (theirs, base) = one, other
    now, before = _record(found), _record(base)
    same_size = ours.known_recipe.model.vocab_size == theirs.known_recipe.model.vocab_size
    return same_size and now is not None and before is not None and now.same_tokenizer(before)


def _same_rows(one, other) -> bool:
    """Whether two runs are known to read the same rows, mixed and shuffled alike, wherever the files lie."""
    (ours, found), (theirs, base) = one, other
    now, before = _record(found), _record(base)
    alike = now is not None and before is not None and now.same_rows(before)
    return alike and _mixing(ours) == _mixing(theirs)


def _mixing(column: Column) -> Any:
    """How the rows of a recipe's sources are mixed."""
    data = column.known_recipe.data
    return [stream.proportion for stream in data.streams()], data.shuffle


def _record(found: dict[str, Any]):
    """The DataRecord of a run, None for one of an earlier version and for a recipe that is no run."""
    from zoo.data.identity import DataRecord  # imports numpy, which recipes alone do without

    data = found.get("run", {}).get("data")
    return None if data is None else DataRecord.model_validate(data)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _differing(columns: Sequence[Column], read: Callable[[Column], Any]) -> list[str]:
    """Labels of the columns whose value differs from the first one's."""
    first = read(columns[0])
    return [column.label for column in columns[1:] if read(column) != first]


def _tokenizer(column: Column) -> Any:
    return data_read(column.known_recipe)["tokenizer"], column.known_recipe.model.vocab_size


def _data(column: Column) -> Any:
    return {name: value for name, value in data_read(column.known_recipe).items() if name != "tokenizer"}


def _seq_len(column: Column) -> int:
    return column.known_recipe.seq_len
