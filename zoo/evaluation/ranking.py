"""Options behind a long prompt: the prompt is read once, into a cache, and every option goes on from a copy of it.

Shapes: P prompts, B rows of a cache, T tokens, N places with a question, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zoo.evaluation.memory import Budget
from zoo.evaluation.subject import Subject
from zoo.evaluation.task import Prompt
from zoo.inference.decoding import padded
from zoo.model.cache import ModelCache

# Tokens of a cache, all rows together, where memory allows it: in generation and here, where a prompt has one row and
# each option another.
CACHED_GPU, CACHED_CPU = 1 << 17, 1 << 13
LEAST_ROWS = 2  # of a cache: a prompt, and one of its options


@dataclass(frozen=True)
class Part:
    """Prompts that are read into one cache.  at_once: options of each that follow at a time; 0: no cache fits."""

    indices: tuple[int, ...]
    at_once: int
    length: int

    @property
    def rows(self) -> int:
        """Of the cache."""
        return len(self.indices) * (1 + self.at_once)


def shares_prefix(prompt: Prompt) -> bool:
    """Whether reading the prompt once saves anything: options of one token are asked at the same place of one row."""
    return len(prompt.tokens) > 0 and all(prompt.options) and sum(len(option) > 1 for option in prompt.options) > 1


@torch.no_grad()
def option_logs(
    subject: Subject, asked: Sequence[Prompt], budget: Budget, advance: Callable[[int], object] = lambda n: None
) -> list[tuple[float, ...] | None]:
    """Log-likelihoods in nats of the options of each prompt, in order; None where no cache of it fits into the budget.

    The subject must have caches (`Subject.new_cache`). Each is of one document.
    """
    found: list[tuple[float, ...] | None] = [None] * len(asked)
    held: list[tuple[tuple[int, ...], list[torch.Tensor]]] = []
    told = False

    def run(part: Part) -> list[torch.Tensor]:
        return _logs(subject, [asked[i] for i in part.indices], part, budget) if part.at_once else []

    for part, logs in budget.in_batches(len(asked), _cutter(subject, asked, budget), run):
        if part.at_once:
            held.append((part.indices, logs))
        elif not told:
            budget.say(f"no cache of {LEAST_ROWS} x {part.length:,} tokens fits: each option is read with its prompt")
            told = True
        advance(0)
    for indices, logs in held:  # on the device until here, so that it never waits for the host
        for i, of_prompt in zip(indices, logs, strict=True):
            found[i] = tuple(of_prompt.tolist())
    return found


def _cutter(subject: Subject, asked: Sequence[Prompt], budget: Budget) -> Callable[[int], Part]:
    """What cuts prompts into parts, the longest first: several with all of their options, or one with some of them."""
    tokens = CACHED_GPU if subject.device.type == "cuda" else CACHED_CPU
    longest_option = [max(map(len, prompt.options)) for prompt in asked]
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].tokens) - longest_option[i])

    def rows_at(length: int, prompts: int) -> int:
        fixed = prompts * subject.row_bytes(length)  # prompts are read side by side
        return budget.rows(subject.cache_row_bytes(length), max(LEAST_ROWS, tokens // length), fixed)

    def cut(start: int) -> Part:
        n = options = of_prompt = of_option = 0
        whole = None
        for i in order[start:]:
            n, options = n + 1, max(options, len(asked[i].options))
            of_prompt, of_option = max(of_prompt, len(asked[i].tokens)), max(of_option, longest_option[i])
            if n * (1 + options) > rows_at(of_prompt + of_option, n):
                break
            whole = Part(tuple(order[start : start + n]), options, of_prompt + of_option)
        if whole is not None:
            return whole
        first = order[start]
        length = len(asked[first].tokens) + longest_option[first]
        rows = rows_at(length, 1)
        return Part((first,), rows - 1 if rows >= LEAST_ROWS else 0, length)

    return cut


def _logs(subject: Subject, asked: Sequence[Prompt], part: Part, budget: Budget) -> list[torch.Tensor]:
    """Float64 [options] of each prompt, on the device.

    The first P rows of the cache keep the prompts; the others hold the options, `at_once` of each prompt at a time.
    """
    n, at_once = len(asked), part.at_once
    cache = subject.new_cache(part.rows, part.length)
    last_PC = _after_prompts(subject, [each.tokens for each in asked], cache.rows(0, n))
    counts = [len(each.options) for each in asked]
    firsts = [option[0] for each in asked for option in each.options]
    logs = _label_logs(subject, last_PC, np.repeat(np.arange(n), counts), firsts, budget)
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
            logs.index_add_(0, of_rows, _rest(subject, asked, rows, cache, budget))
    return list(logs.split(counts))


def _after_prompts(subject: Subject, prompts: Sequence[Sequence[int]], cache: ModelCache) -> torch.Tensor:
    """Read the prompts into the cache; return the final hidden states [P, C] of the last token of each."""
    lengths = [len(prompt) for prompt in prompts]
    hidden_PTC = subject.append(*padded(prompts, subject.device, cache))
    return hidden_PTC[torch.arange(len(prompts)), torch.tensor(lengths) - 1]


def _rest(
    subject: Subject, asked: Sequence[Prompt], rows: Sequence[tuple[int, int, int]], cache: ModelCache, budget: Budget
) -> torch.Tensor:
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
    logs_N = _label_logs(subject, hidden_BTC[row_N, position_N], np.arange(len(labels)), labels, budget)
    of_N = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(logs_N.device)
    return logs_N.new_zeros(len(counts)).index_add(0, of_N, logs_N)


def _label_logs(
    subject: Subject, hidden_RC: torch.Tensor, row_N: np.ndarray, labels: Sequence[int], budget: Budget
) -> torch.Tensor:
    """The log-likelihood [N], float64, of each label after hidden state row_N[i]; row_N ascends.

    The head is computed in parts, of as many rows as the budget has places.
    """
    at_once = min(len(hidden_RC), budget.places(subject.vocab_size))
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
