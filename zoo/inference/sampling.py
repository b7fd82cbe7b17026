"""From logits to the next token of each row, on the device.

Shapes are static and nothing waits for the device, so that a draw can be part of a CUDA graph. The order is that of
transformers: repetition penalty, temperature, top-k, top-p, min-p, each on what the one before has left.
Legend: B rows, V tokens of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from zoo.inference.errors import GenerationError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature: logits are divided by it; 0 takes the most likely token (greedy), and 1 is the model's distribution.
    top_k: keep the k most likely tokens (Fan 2018, arXiv 1805.04833).  top_p: keep the most likely tokens up to this
    share of the probability (Holtzman 2020, arXiv 1904.09751).  min_p: keep tokens at least this many times as likely
    as the most likely one (Nguyen 2024, arXiv 2407.01082).  None turns each of the three off.
    repetition_penalty: positive logits of tokens that the row already has are divided by it, negative ones multiplied
    (Keskar 2019, arXiv 1909.05858); 1 changes nothing.
    seed: the same prompts, settings, seed and device give the same tokens.
    Raises GenerationError, with all that is wrong, if a value is out of bounds.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if problems := list(self._problems()):
            raise GenerationError("\n".join(problems))

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    def _problems(self) -> Iterator[str]:
        finite = float("inf")
        if not 0 <= self.temperature < finite:
            yield f"temperature: must be at least 0; found {self.temperature}"
        if self.top_k is not None and self.top_k < 1:
            yield f"top_k: must be at least 1; found {self.top_k}"
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield f"top_p: must be above 0 and at most 1; found {self.top_p}"
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            yield f"min_p: must be within 0..1; found {self.min_p}"
        if not 0 < self.repetition_penalty < finite:
            yield f"repetition_penalty: must be above 0; found {self.repetition_penalty}"
        if not 0 <= self.seed < 2**63:
            yield f"seed: must be within 0..2**63 - 1; found {self.seed}"


class Sampler:
    """Draws the next token of each row and remembers which tokens a row has.

    n_known: tokens from this number on are never drawn (a vocabulary is often rounded up; they stand for no text).
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], vocab_size: int, n_known: int, device):
        self.sampling, self.n_known = sampling, n_known
        self.generator = torch.Generator(device).manual_seed(sampling.seed)
        self._seen_BV = None
        if sampling.repetition_penalty != 1:
            seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                seen_BV[row, torch.as_tensor(prompt)] = True
            self._seen_BV = seen_BV[:, :n_known].to(device)

    def __call__(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """tokens_B, int64, drawn by logits_BV of any float dtype."""
        logits_BV = logits_BV[:, : self.n_known].float()
        if self._seen_BV is not None:
            logits_BV = penalised(logits_BV, self._seen_BV, self.sampling.repetition_penalty)
        tokens_B = logits_BV.argmax(-1) if self.sampling.greedy else self._drawn(logits_BV)
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, tokens_B[:, None], True)
        return tokens_B

    def _drawn(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """By a race of exponential clocks, whose winner is i with probability p_i: no sum is compared with a uniform
        number, and nothing is checked on the host, as `torch.multinomial` does both."""
        p_BV = truncated(tempered(logits_BV, self.sampling.temperature), self.sampling).softmax(-1)
        clock_BV = torch.empty_like(p_BV).exponential_(generator=self.generator)
        return (p_BV / clock_BV).argmax(-1)


def tempered(logits_BV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits over the temperature, the largest of a row moved to 0, so that no temperature is too small for float32."""
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(temperature, 1e-30)


def penalised(logits_BV: torch.Tensor, seen_BV: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make the tokens that a row already has less likely (more likely for a penalty below 1)."""
    changed_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, changed_BV, logits_BV)


def truncated(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """-inf for the tokens that top-k, top-p or min-p leave out; at least the most likely token of a row stays."""
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(sampling.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        p_BV, order_BV = logits_BV.softmax(-1).sort(descending=True)
        out_BV = p_BV.cumsum(-1) - p_BV >= sampling.top_p  # the tokens before it already make up the share
        out_BV[:, 0] = False  # rounding: a cumulative sum less its first term need not be 0
        logits_BV = logits_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), -torch.inf)
    if sampling.min_p is not None:
        p_BV = logits_BV.softmax(-1)
        logits_BV = logits_BV.masked_fill(p_BV < sampling.min_p * p_BV.amax(-1, keepdim=True), -torch.inf)
    return logits_BV
