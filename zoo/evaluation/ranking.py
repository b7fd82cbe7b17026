"""Options behind a long prompt: the prompt is read once, into a cache, and every option goes on from a copy of it.

Shapes: P prompts, B rows of a cache, T tokens, N places with a question, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zoo.evaluation.batching import LOGITS_AT_ONCE
from zoo.evaluation.subject import Subject
from zoo.inference.decoding import padded

# Tokens of a cache, all rows together, in generation and here, where a prompt has one row and each option another.
CACHED_GPU, CACHED_CPU = 1 << 17, 1 << 13

Options = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Ranked:
    """A prompt and its options, in tokens."""

    tokens: Sequence[int]
    options: Options


def shares_prefix(tokens: Sequence[int], options: Options) -> bool:
    """Whether reading the prompt once saves anything: options of one token are asked at the same place of one row."""
    return len(tokens) > 0 and all(options) and sum(len(option) > 1 for option in options) > 1


@torch.no_grad()
def option_logs(
    subject: Subject, asked: Sequence[Ranked], advance: Callable[[int], object] = lambda n: None
) -> list[tuple[float, ...]]:
    """Log-likelihoods in nats of the options of each prompt, in order.

    The subject must have caches (`Subject.new_cache`). Each is of one document.
    """
    budget = CACHED_GPU if subject.device.type == "cuda" else CACHED_CPU
    found: dict[int, torch.Tensor] = {}
    for part, at_once in _parts(asked, budget):
        found |= zip(part, _logs(subject, [asked[i] for i in part], at_once), strict=True)
        advance(0)
    return [tuple(found[i].tolist()) for i in range(len(asked))]


def _parts(asked: Sequence[Ranked], budget: int) -> Iterator[tuple[list[int], int]]:
    """(prompts, options of each at a time) of the caches, the longest prompt first."""
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].tokens))
    start = 0
    while start < len(order):
        first = asked[order[start]]
        rows = max(2, budget // (len(first.tokens) + max(map(len, first.options))))
        prompts = max(1, rows // (1 + len(first.options)))
        part = order[start : start + prompts]
        yield part, min(rows // len(part) - 1, max(len(asked[i].options) for i in part))
        start += len(part)


def _logs(subject: Subject, asked: Sequence[Ranked], at_once: int) -> list[torch.Tensor]:
    """Float64 [options] of each prompt, on the device.

    The first P rows of the cache keep the prompts; the others hold the options, `at_once` of each prompt at a time.
    """
    n, longest = len(asked), max(len(option) for each in asked for option in each.options)
    cache = subject.new_cache(n * (1 + at_once), max(len(each.tokens) for each in asked) + longest)
    last_PC = _after_prompts(subject, [each.tokens for each in asked], cache.rows(0, n))
    counts = [len(each.options) for each in asked]
    firsts = [option[0] for each in asked for option in each.options]
    logs = _label_logs(subject, last_PC, np.repeat(np.arange(n), counts), firsts)
    offsets = [0, *np.cumsum(counts).tolist()]
    source_B = torch.arange(n, device=subject.device).repeat(1 + at_once)
    for start in range(0, max(counts), at_once):
        # Row n + k n + p holds option start + k of prompt p.
        rows = [
            (n + k * n + p, p, start + k)
            for p, each in enumerate(asked)
            for k in range(min(at_once, counts[p] - start))
            if len(each.options[start + k]) > 1
        ]
        if rows:
            cache.reorder(source_B)
            of_rows = torch.tensor([offsets[p] + option for _, p, option in rows], device=logs.device)
            logs.index_add_(0, of_rows, _rest(subject, asked, rows, cache))
    return list(logs.split(counts))


def _after_prompts(subject: Subject, prompts: Sequence[Sequence[int]], cache) -> torch.Tensor:
    """Read the prompts into the cache; return the final hidden states [P, C] of the last token of each."""
    lengths = [len(prompt) for prompt in prompts]
    hidden_PTC = subject.append(*padded(prompts, subject.device, cache))
    return hidden_PTC[torch.arange(len(prompts)), torch.tensor(lengths) - 1]


def _rest(subject: Subject, asked: Sequence[Ranked], rows: Sequence[tuple[int, int, int]], cache) -> torch.Tensor:
    """The log-likelihood [rows], float64, of each option's tokens behind its first.

    rows: (row of the cache, prompt, option); the other rows append nothing.
    """
    options = {row: asked[p].options[option] for row, p, option in rows}
    inputs = [options.get(row, ())[:-1] for row in range(cache.batch)]
    hidden_BTC = subject.append(*padded(inputs, subject.device, cache))
    counts = [len(option) - 1 for option in options.values()]
    row_N = torch.from_numpy(np.repeat(list(options), counts))
    position_N = torch.from_numpy(np.concatenate([np.arange(count) for count in counts]))
    labels = [token for option in options.values() for token in option[1:]]
    logs_N = _label_logs(subject, hidden_BTC[row_N, position_N], np.arange(len(labels)), labels)
    of_N = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(logs_N.device)
    return logs_N.new_zeros(len(counts)).index_add(0, of_N, logs_N)


def _label_logs(subject: Subject, hidden_RC: torch.Tensor, row_N: np.ndarray, labels: Sequence[int]) -> torch.Tensor:
    """The log-likelihood [N], float64, of each label after hidden state row_N[i]; row_N ascends.

    The head is computed in parts, of at most LOGITS_AT_ONCE numbers.
    """
    at_once = max(1, LOGITS_AT_ONCE // subject.vocab_size)
    ends = np.searchsorted(row_N, np.arange(at_once, len(hidden_RC) + at_once, at_once)).tolist()
    label_N, place_N = torch.tensor(labels), torch.from_numpy(row_N % at_once)
    logs, begin = [], 0
    for part_RC, end in zip(hidden_RC.split(at_once), ends, strict=True):
        logits_RV = subject.head(part_RC)
        place, label = (each[begin:end].to(logits_RV.device) for each in (place_N, label_N))
        total_R = torch.logsumexp(logits_RV, 1).double()
        logs.append(logits_RV[place, label].double() - total_R[place])
        begin = end
    return torch.cat(logs)
