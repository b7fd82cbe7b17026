"""Examples to answers: the three ways to ask a model, batched by length.

Shapes: B rows, T tokens of a row, N places with a question, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeGuard

import numpy as np
import torch

from zoo.evaluation.batching import LOGITS_AT_ONCE, Batch, batches
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.ranking import CACHED_CPU, CACHED_GPU, Ranked, option_logs, shares_prefix
from zoo.evaluation.subject import Subject
from zoo.evaluation.task import IGNORED, Answer, Choice, Chosen, Example, Generated, Labelled, Predicted, Prompt, Text

PLACES_HELD = 1 << 22  # replies kept on the device, 16 bytes each, before the host fetches them
GREEDY_ROWS = 32  # prompts generated side by side


@dataclass(frozen=True)
class Query:
    """A row of tokens, and the places where the next token is asked for with its label.

    tokens: the model's input.  places: positions in it.  labels: the token asked about at each place.
    starts: places where documents begin; None: one document.
    """

    tokens: tuple[int, ...]
    places: tuple[int, ...]
    labels: tuple[int, ...]
    starts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Reply:
    """For each place of a query: the label's log-likelihood in nats, and the likeliest token."""

    loglikelihood: np.ndarray
    likeliest: np.ndarray


Advance = Callable[[int], object]  # called with the number of rows done since the last call


def answer(subject: Subject, examples: Sequence[Example], advance: Advance = lambda n: None) -> list[Answer]:
    """The answer to each example, in order.  advance: called with the number of examples done since the last call.

    Raises EvaluationError for an example that the model cannot be given, before the first batch runs.
    """
    return plan(subject, examples)(advance)


def plan(subject: Subject, examples: Sequence[Example]) -> Callable[[Advance], list[Any]]:
    """Make the examples of tokens and check them; what is returned asks the model, and returns the answers in order.

    Raises EvaluationError for an example that the model cannot be given.
    """
    kinds = {type(example) for example in examples}
    if len(kinds) > 1:
        raise EvaluationError(f"a task must have one kind of example; found {sorted(kind.__name__ for kind in kinds)}")
    if not examples:
        return lambda advance: []
    ways: dict[type, Callable[..., Any]] = {Choice: _choices, Labelled: _labelled, Prompt: _prompts}
    return ways[kinds.pop()](subject, examples)


def ask(subject: Subject, queries: Sequence[Query], advance: Advance = lambda n: None) -> list[Reply]:
    """Replies to queries, in order. Rows of like length run together, the longest first, so that memory fails early.

    The replies stay on the device until there are PLACES_HELD of them: the host prepares the next batch meanwhile.
    """
    replies: dict[int, Reply] = {}
    held: list[tuple[Sequence[int], torch.Tensor, torch.Tensor]] = []
    n_held = 0
    for batch in _batches(subject, [len(query.tokens) for query in queries]):
        logs_N, likeliest_N = _log_likelihoods(subject, [queries[i] for i in batch.indices], batch)
        held.append((batch.indices, logs_N, likeliest_N))
        n_held += len(logs_N)
        if n_held >= PLACES_HELD:
            replies |= _fetched(queries, held)
            held, n_held = [], 0
        advance(len(batch.indices))
    replies |= _fetched(queries, held)
    return [replies[i] for i in range(len(queries))]


def _batches(subject: Subject, lengths: Sequence[int]) -> Iterator[Batch]:
    longest = subject.max_len if subject.longest is None else min(subject.max_len, subject.longest)
    return batches(lengths, few_shapes=subject.device.type == "cuda", longest=longest)


def _fetched(queries: Sequence[Query], held) -> dict[int, Reply]:
    """The replies of batches on the device, by the query: one transfer for all of them."""
    if not held:
        return {}
    order, logs, likeliest = zip(*held, strict=True)
    logs_N, likeliest_N = torch.cat(logs).cpu().numpy(), torch.cat(likeliest).cpu().numpy()
    replies, start = {}, 0
    for i in chain.from_iterable(order):
        end = start + len(queries[i].places)
        replies[i] = Reply(logs_N[start:end], likeliest_N[start:end])
        start = end
    return replies


@torch.no_grad()
def _log_likelihoods(subject: Subject, queries: Sequence[Query], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-likelihood of each label float64 [N], likeliest token int64 [N]) of a batch, on the device.

    The queries have the rows of the batch in order; rows of padding may follow.
    """
    tokens_BT = np.zeros((batch.rows, batch.length), np.int64)
    for row, query in enumerate(queries):
        tokens_BT[row, : len(query.tokens)] = query.tokens
    asked_3N = np.empty((3, sum(len(query.places) for query in queries)), np.int64)
    asked_3N[0] = np.repeat(np.arange(len(queries)), [len(query.places) for query in queries])
    asked_3N[1] = list(chain.from_iterable(query.places for query in queries))
    asked_3N[2] = list(chain.from_iterable(query.labels for query in queries))
    row_N, position_N, label_N = _sent(torch.from_numpy(asked_3N), subject.device)
    starts_BT = _starts(queries, batch)
    at_once = max(1, LOGITS_AT_ONCE // subject.vocab_size)
    parts = subject.logits_parts(
        _sent(torch.from_numpy(tokens_BT), subject.device),
        row_N,
        position_N,
        None if starts_BT is None else _sent(starts_BT, subject.device),
        at_once=at_once,
    )
    logs, likeliest, start = [], [], 0
    for logits_NV in parts:
        label = label_N[start : start + len(logits_NV)].to(logits_NV.device)
        start += len(logits_NV)
        logs.append(logits_NV.gather(1, label[:, None])[:, 0].double() - torch.logsumexp(logits_NV, 1).double())
        likeliest.append(logits_NV.argmax(1))
    return torch.cat(logs), torch.cat(likeliest)


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; from pinned memory, because the host waits for a copy from any other."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _starts(queries: Sequence[Query], batch: Batch) -> torch.Tensor | None:
    """Where documents begin, bool [B, T]; the padding of a row begins one. None if no query says."""
    if all(query.starts is None for query in queries):
        return None
    starts_BT = torch.zeros(batch.rows, batch.length, dtype=torch.bool)
    starts_BT[:, 0] = True
    for row, query in enumerate(queries):
        n = len(query.tokens)
        starts_BT[row, [0, *(query.starts or ()), *([n] if n < batch.length else [])]] = True
    return starts_BT


def _choices(subject: Subject, examples: Sequence[Choice]) -> Callable[[Advance], list[Chosen]]:
    """Options that differ in their last token only share one row, so that one-word answers cost one row a question."""
    pairs = _pairs(subject, examples)
    queries: list[Query] = []
    index: dict[tuple[int, ...], int] = {}
    shared: list[dict[int, int]] = []  # of each query: place of a label among its labels
    at: list[list[tuple[int, slice]]] = []
    cut: list[bool] = []
    for row, options in enumerate(pairs):
        found, truncated = [], False
        for context, continuation in options:
            _check_filled(row, context, continuation)
            tokens = [*context, *continuation][:-1]
            if len(continuation) > subject.max_len:
                limit = f"the model takes {subject.max_len} tokens"
                raise EvaluationError(f"row {row}: an option has {len(continuation)} tokens, and {limit}")
            truncated |= len(tokens) > subject.max_len
            tokens = tokens[-subject.max_len :]
            found.append(_placed(tuple(tokens), continuation, queries, index, shared))
        at.append(found)
        cut.append(truncated)

    def run(advance: Advance) -> list[Chosen]:
        replies = ask(subject, queries, _in_rows(advance, len(queries), len(examples)))
        return [_chosen(found, pair, replies, truncated) for found, pair, truncated in zip(at, pairs, cut, strict=True)]

    return run


def _pairs(subject: Subject, examples: Sequence[Choice]) -> list[list[tuple[list[int], list[int]]]]:
    """(context, continuation) in tokens of every option of every example; all texts are encoded together."""
    texts = [option for example in examples for option in example.options if _is_text(option)]
    encoded = iter(subject.encode_pairs(texts) if texts else ())
    return [
        [next(encoded) if _is_text(option) else _of_tokens(option) for option in example.options]
        for example in examples
    ]


def _is_text(option: tuple[Text, Text]) -> TypeGuard[tuple[str, str]]:
    return isinstance(option[0], str) and isinstance(option[1], str)


def _of_tokens(option: tuple[Text, Text]) -> tuple[list[int], list[int]]:
    context, continuation = option
    assert not isinstance(context, str) and not isinstance(continuation, str), "both are texts, or both tokens"  # noqa: PT018
    return list(context), list(continuation)


def _check_filled(row: int, context: Sequence[int], continuation: Sequence[int]) -> None:
    """Raise EvaluationError if the tokens of an option, or those before it, are none."""
    for part, name in ((continuation, "an option"), (context, "the text before an option")):
        if not part:
            raise EvaluationError(f"row {row}: {name} has no tokens")


def _placed(tokens, continuation, queries, index, shared) -> tuple[int, slice]:
    """(query, the places of this continuation among its labels); a one-token continuation joins a row that is there."""
    n = len(continuation)
    if n == 1 and tokens in index:
        query = index[tokens]
        old, label = queries[query], continuation[0]
        if label not in shared[query]:
            shared[query][label] = len(old.labels)
            queries[query] = Query(old.tokens, (*old.places, len(tokens) - 1), (*old.labels, label))
        return query, slice(shared[query][label], shared[query][label] + 1)
    places = tuple(range(len(tokens) - n, len(tokens)))
    queries.append(Query(tokens, places, tuple(continuation)))
    shared.append({continuation[0]: 0} if n == 1 else {})
    if n == 1:
        index[tokens] = len(queries) - 1
    return len(queries) - 1, slice(0, n)


def _chosen(found, pairs, replies: Sequence[Reply], truncated: bool) -> Chosen:
    logs, greedy = [], []
    for (query, where), (_, continuation) in zip(found, pairs, strict=True):
        reply = replies[query]
        logs.append(float(reply.loglikelihood[where].sum()))
        greedy.append(reply.likeliest[where].tolist() == list(continuation))
    return Chosen(tuple(logs), tuple(greedy), tuple(len(c) for _, c in pairs), truncated)


def _labelled(subject: Subject, examples: Sequence[Labelled]) -> Callable[[Advance], list[Predicted]]:
    queries = []
    for row, example in enumerate(examples):
        if subject.longest is not None and len(example.tokens) > subject.longest:
            raise EvaluationError(f"row {row} has {len(example.tokens)} tokens, and the model takes {subject.longest}")
        top = int(max(example.tokens.max(), example.labels.max()))
        if top >= subject.vocab_size:
            raise EvaluationError(f"row {row} holds token {top}, and the model knows {subject.vocab_size}")
        places = np.flatnonzero(example.labels != IGNORED)
        if not len(places):
            raise EvaluationError(f"row {row} has no label to predict: every label is {IGNORED}")
        starts = None if example.starts is None else tuple(example.starts.tolist())
        labels = tuple(example.labels[places].tolist())
        queries.append(Query(tuple(example.tokens.tolist()), tuple(places.tolist()), labels, starts))
    return lambda advance: [Predicted(r.likeliest, -r.loglikelihood) for r in ask(subject, queries, advance)]


def _prompts(subject: Subject, examples: Sequence[Prompt]) -> Callable[[Advance], list[Generated]]:
    for row, example in enumerate(examples):
        need = len(example.tokens) + max(example.max_tokens, *map(len, example.options), 0)
        if need > subject.max_len:
            raise EvaluationError(f"row {row} takes {need} tokens, and the model takes {subject.max_len}")
        for option in example.options:
            _check_filled(row, example.tokens, option)
    ranked, choices = {}, {}  # by the row: prompts that are read once, and those whose options are rows of their own
    for row, example in enumerate(examples):
        if subject.has_cache and shares_prefix(example.tokens, example.options):
            ranked[row] = Ranked(example.tokens, example.options)
        elif example.options:
            choices[row] = Choice(tuple((example.tokens, option) for option in example.options), 0)
    rank = plan(subject, list(choices.values()))

    def run(advance: Advance) -> list[Generated]:
        waiting = lambda n: advance(0)  # noqa: E731 - no row is done by its ranks alone; a watchdog waits for a call
        of_row = dict(zip(ranked, option_logs(subject, list(ranked.values()), waiting), strict=True))
        of_row |= zip(choices, (chosen.loglikelihood for chosen in rank(waiting)), strict=True)
        logs = [of_row.get(row, ()) for row in range(len(examples))]
        texts = _generated(subject, examples, advance)
        return [Generated(text, log) for text, log in zip(texts, logs, strict=True)]

    return run


def _generated(subject: Subject, examples: Sequence[Prompt], advance) -> list[str]:
    """The greedy continuation of each prompt that asks for one; prompts of like length run side by side."""
    tokenizer = subject.tokenizer
    assert tokenizer is not None, "a prompt is a text"
    texts = [""] * len(examples)
    wanted = [i for i, example in enumerate(examples) if example.max_tokens]
    advance(len(examples) - len(wanted))
    lengths = [len(examples[i].tokens) + examples[i].max_tokens for i in wanted]
    budget = CACHED_GPU if subject.device.type == "cuda" else CACHED_CPU
    for batch in batches(lengths, few_shapes=False, budget=budget):
        for start in range(0, len(batch.indices), GREEDY_ROWS):
            part = [wanted[at] for at in batch.indices[start : start + GREEDY_ROWS]]
            most = max(examples[i].max_tokens for i in part)
            made = subject.greedy([examples[i].tokens for i in part], most)
            for i, tokens in zip(part, made, strict=True):
                texts[i] = tokenizer.decode(tokens[: examples[i].max_tokens])
            advance(len(part))
    return texts


def _in_rows(advance, n_queries: int, n_rows: int) -> Callable[[int], None]:
    """`advance` in rows, called with queries done: a row of a multiple-choice task is several queries."""
    done = told = 0

    def count(n: int) -> None:
        nonlocal done, told
        done += n
        now = done * n_rows // max(1, n_queries)
        advance(now - told)
        told = now

    return count
