"""Examples to answers: the three ways to ask a model, batched by length.

Shapes: B rows, T tokens of a row, N places with a question, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeGuard

import numpy as np
import torch

from zoo.evaluation.batching import TOKENS_CPU, TOKENS_GPU, Batch, by_length
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.memory import Budget
from zoo.evaluation.ranking import CACHED_CPU, CACHED_GPU, option_logs, shares_prefix
from zoo.evaluation.subject import Subject
from zoo.evaluation.task import IGNORED, Answer, Choice, Chosen, Example, Generated, Labelled, Predicted, Prompt, Text

PLACES_HELD = 1 << 22  # replies kept on the device, 16 bytes each, before the host fetches them
GREEDY_ROWS = 32  # prompts generated side by side


Numbers = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Query:
    """A row of tokens, and the places where the next token is asked for with its label.

    tokens: the model's input.  places: positions in it.  labels: the token asked about at each place.
    starts: places where documents begin; None: one document.
    """

    tokens: Numbers
    places: Numbers
    labels: Numbers
    starts: Numbers | None = None


@dataclass(frozen=True)
class Reply:
    """For each place of a query: the label's log-likelihood in nats, and the likeliest token."""

    loglikelihood: np.ndarray
    likeliest: np.ndarray


Advance = Callable[[int], object]  # called with the number of rows done since the last call
Run = Callable[[Advance, Budget], list[Any]]  # asks the model and returns the answers


def answer(
    subject: Subject, examples: Sequence[Example], advance: Advance = lambda n: None, budget: Budget | None = None
) -> list[Answer]:
    """The answer to each example, in order.  advance: called with the number of examples done since the last call.

    budget: memory of a batch; default `Budget.of` the subject.
    Raises EvaluationError for an example that the model cannot be given, before the first batch runs; or if memory runs
    out with one row alone.
    """
    return plan(subject, examples)(advance, budget or Budget.of(subject))


def plan(subject: Subject, examples: Sequence[Example]) -> Run:
    """Make the examples of tokens and check them; what is returned asks the model, and returns the answers in order.

    Raises EvaluationError for an example that the model cannot be given.
    """
    kinds = {type(example) for example in examples}
    if len(kinds) > 1:
        raise EvaluationError(f"a task must have one kind of example; found {sorted(kind.__name__ for kind in kinds)}")
    if not examples:
        return lambda advance, budget: []
    ways: dict[type, Callable[..., Run]] = {Choice: _choices, Labelled: _labelled, Prompt: _prompts}
    return ways[kinds.pop()](subject, examples)


def ask(
    subject: Subject, queries: Sequence[Query], advance: Advance = lambda n: None, budget: Budget | None = None
) -> list[Reply]:
    """Replies to queries, in order; advance and budget as in `answer`. Rows of like length run together.

    The replies stay on the device until there are PLACES_HELD of them: the host prepares the next batch meanwhile.
    """
    budget = budget or Budget.of(subject)
    replies: dict[int, Reply] = {}
    held: list[tuple[Sequence[int], torch.Tensor, torch.Tensor]] = []
    n_held = 0
    cut = _cutter(subject, [len(query.tokens) for query in queries], budget)
    run = partial(_log_likelihoods, subject, queries, budget)
    for batch, (logs_N, likeliest_N) in budget.in_batches(len(queries), cut, run):
        held.append((batch.indices, logs_N, likeliest_N))
        n_held += len(logs_N)
        if n_held >= PLACES_HELD:
            replies |= _fetched(queries, held)
            held, n_held = [], 0
        advance(len(batch.indices))
    replies |= _fetched(queries, held)
    return [replies[i] for i in range(len(queries))]


def _cutter(subject: Subject, lengths: Sequence[int], budget: Budget) -> Callable[[int], Batch]:
    on_gpu = subject.device.type == "cuda"
    longest = subject.max_len if subject.longest is None else min(subject.max_len, subject.longest)
    tokens = TOKENS_GPU if on_gpu else TOKENS_CPU

    def rows_at(length: int) -> int:
        return budget.rows(subject.row_bytes(length), most=max(1, tokens // max(1, length)))

    return by_length(lengths, rows_at, few_shapes=on_gpu, longest=longest)


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
def _log_likelihoods(
    subject: Subject, queries: Sequence[Query], budget: Budget, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-likelihood of each label float64 [N], likeliest token int64 [N]) of a batch, on the device."""
    asked = [queries[i] for i in batch.indices]  # the first rows of the batch, in order; rows of padding may follow
    tokens_BT = np.zeros((batch.rows, batch.length), np.int64)
    for row, query in enumerate(asked):
        tokens_BT[row, : len(query.tokens)] = query.tokens
    row_N = np.repeat(np.arange(len(asked)), [len(query.places) for query in asked])
    places_N, labels_N = (np.concatenate(each) for each in zip(*((q.places, q.labels) for q in asked), strict=True))
    asked_3N = torch.from_numpy(np.stack((row_N, places_N, labels_N)).astype(np.int64))
    row_N, position_N, label_N = _sent(asked_3N, subject.device)
    starts_BT = _starts(asked, batch)
    parts = subject.logits_parts(
        _sent(torch.from_numpy(tokens_BT), subject.device),
        row_N,
        position_N,
        None if starts_BT is None else _sent(starts_BT, subject.device),
        at_once=budget.places(subject.vocab_size),
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
        begun = () if query.starts is None else query.starts
        starts_BT[row, [0, *begun, *([n] if n < batch.length else [])]] = True
    return starts_BT


def _choices(subject: Subject, examples: Sequence[Choice]) -> Run:
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

    def run(advance: Advance, budget: Budget) -> list[Chosen]:
        replies = ask(subject, queries, _in_rows(advance, len(queries), len(examples)), budget)
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


def _labelled(subject: Subject, examples: Sequence[Labelled]) -> Run:
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
        queries.append(Query(example.tokens, places, example.labels[places], example.starts))

    def run(advance: Advance, budget: Budget) -> list[Predicted]:
        return [Predicted(reply.likeliest, -reply.loglikelihood) for reply in ask(subject, queries, advance, budget)]

    return run


def _prompts(subject: Subject, examples: Sequence[Prompt]) -> Run:
    for row, example in enumerate(examples):
        need = len(example.tokens) + max(example.max_tokens, *map(len, example.options), 0)
        if need > subject.max_len:
            raise EvaluationError(f"row {row} takes {need} tokens, and the model takes {subject.max_len}")
        for option in example.options:
            _check_filled(row, example.tokens, option)
    with_options = [row for row, example in enumerate(examples) if example.options]
    read_once: list[int] = []
    apart: list[int] = []
    for row in with_options:
        (read_once if subject.has_cache and shares_prefix(examples[row]) else apart).append(row)
    rank_apart = plan(subject, [_options_apart(examples[row]) for row in apart])

    def run(advance: Advance, budget: Budget) -> list[Generated]:
        waiting = lambda n: advance(0)  # noqa: E731 - no row is done by its ranks alone; a watchdog waits for a call
        found = option_logs(subject, [examples[row] for row in read_once], budget, waiting)
        of_row = {row: logs for row, logs in zip(read_once, found, strict=True) if logs is not None}
        too_long = [row for row in read_once if row not in of_row]
        rank_too_long = plan(subject, [_options_apart(examples[row]) for row in too_long])
        for rows, rank in ((apart, rank_apart), (too_long, rank_too_long)):
            of_row |= zip(rows, (chosen.loglikelihood for chosen in rank(waiting, budget)), strict=True)
        logs = [of_row.get(row, ()) for row in range(len(examples))]
        texts = _generated(subject, examples, advance, budget)
        return [Generated(text, log) for text, log in zip(texts, logs, strict=True)]

    return run


def _options_apart(prompt: Prompt) -> Choice:
    """The options of a prompt, each in a row of its own."""
    return Choice(tuple((prompt.tokens, option) for option in prompt.options), 0)


def _generated(subject: Subject, examples: Sequence[Prompt], advance: Advance, budget: Budget) -> list[str]:
    """The greedy continuation of each prompt that asks for one; prompts of like length run side by side."""
    tokenizer = subject.tokenizer
    assert tokenizer is not None, "a prompt is a text"
    texts = [""] * len(examples)
    wanted = [example for example in examples if example.max_tokens]
    where = [i for i, example in enumerate(examples) if example.max_tokens]
    advance(len(examples) - len(wanted))
    tokens = CACHED_GPU if subject.device.type == "cuda" else CACHED_CPU

    def rows_at(length: int) -> int:
        of_row = subject.cache_row_bytes(length) + subject.row_bytes(length)
        return budget.rows(of_row, most=max(1, min(GREEDY_ROWS, tokens // length)))

    def run(batch: Batch) -> list[list[int]]:
        together = [wanted[i] for i in batch.indices]
        return subject.greedy([each.tokens for each in together], max(each.max_tokens for each in together))

    cut = by_length([len(each.tokens) + each.max_tokens for each in wanted], rows_at, few_shapes=False)
    for batch, made in budget.in_batches(len(wanted), cut, run):
        for i, found in zip(batch.indices, made, strict=True):
            texts[where[i]] = tokenizer.decode(found[: wanted[i].max_tokens])
        advance(len(batch.indices))
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
