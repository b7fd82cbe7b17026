"""The device side of a generation: prompts into the cache, then one token a step for every row.

On CUDA a step is some hundred kernels of a few microseconds each, which Python cannot launch as fast as they run. So
it is captured as a CUDA graph after two steps in the plain way, which compile and load what the graph will hold.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch

from zoo.inference.sampling import Sampler
from zoo.model import Decoder
from zoo.model.cache import ModelCache
from zoo.model.capture import captured

TOKENS_AT_ONCE = 65_536  # of a prefill, padding included; a longer prompt is read alone, in one piece
WARM_UP = 2  # steps before the capture


class Decoding:
    """A batch of rows that are continued together; rows that are done go on unseen.

    cache: empty, with room for the prompts and for one token a step.  say: told why if a step cannot be a CUDA graph.
    """

    def __init__(
        self, model: Decoder, sampler: Sampler, cache: ModelCache, say: Callable[[str], object] = warnings.warn
    ):
        self.model, self.sampler, self.cache, self.say = model, sampler, cache, say
        self.on_gpu = cache.length_B.is_cuda
        self.tokens_B = torch.zeros_like(cache.length_B)  # drawn and not yet in the cache; always the same memory
        # Streams and Triton work on the current device, which need not be the model's.
        self._device = torch.cuda.device(self.tokens_B.device) if self.on_gpu else nullcontext()
        self.graph: torch.cuda.CUDAGraph | None = None
        self._plain_steps, self._capturable = 0, self.on_gpu
        self._side: torch.cuda.Stream | None = None  # of the steps that warm up, and of the capture

    def run(self, prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
        """Yield the next token of each row, up to `most` times.

        From the second token on, a GPU computes a step while the host still handles the tokens of the one before.
        """
        self.prefill(prompts)
        yield _on_host(self._sent())
        ahead: deque = deque()
        for _ in range(1, most):
            self.step()
            ahead.append(self._sent())
            if len(ahead) > self.on_gpu:
                yield _on_host(ahead.popleft())
        while ahead:
            yield _on_host(ahead.popleft())

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the prompts, a few rows at a time, and draw the first token of each."""
        with self._device:
            parts = [
                self.model.next_logits(*padded(prompts[lo:hi], self.cache.length_B.device, self.cache.rows(lo, hi)))
                for lo, hi in micro_batches([len(prompt) for prompt in prompts])
            ]
            self.tokens_B.copy_(self.sampler(torch.cat(parts)))

    def step(self) -> None:
        """Append the drawn tokens to the cache and draw the next ones, into `tokens_B`."""
        with self._device:
            self._step_on_device()

    def _step_on_device(self) -> None:
        if self.graph is None and self._capturable and self._plain_steps >= WARM_UP:
            self._capture()
        if self.graph is not None:
            self.graph.replay()
            return
        self._plain_steps += 1
        if not self._capturable:
            self._step()
            return
        current = torch.cuda.current_stream()
        self._side = self._side or torch.cuda.Stream()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            self._step()
        current.wait_stream(self._side)

    @torch.no_grad()
    def _step(self) -> None:
        logits_BV = self.model.next_logits(self.tokens_B[:, None], self.cache)
        self.tokens_B.copy_(self.sampler(logits_BV))

    def _capture(self) -> None:
        """Record a step, which runs nothing; where that fails, steps stay as they are."""
        generator, graph, stream = self.sampler.generator, torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        state = generator.get_state()
        graph.register_generator_state(generator)
        try:
            with captured(graph, stream=self._side):
                self._step()
            self.graph = graph
        except RuntimeError as error:  # whatever a kernel does that cannot be recorded: CUDA's and torch's own errors
            self._capturable = False
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream the current one
            # The old generator may still believe that it is being recorded.
            self.sampler.generator = torch.Generator(generator.device)
            self.sampler.generator.set_state(state)
            first = error.__context__ or error  # ending the capture fails again, and says less
            reason = str(first).strip().split("\n")[0]
            self.say(f"decoding without a CUDA graph, which is slower: {reason}")

    def _sent(self) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """The drawn tokens on their way to the host, and what says that they are there."""
        if not self.on_gpu:
            return self.tokens_B.clone(), None
        with self._device:
            host_B = torch.empty(self.tokens_B.shape, dtype=torch.int64, pin_memory=True)
            host_B.copy_(self.tokens_B, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        return host_B, event


def micro_batches(lengths: Sequence[int], most: int = TOKENS_AT_ONCE) -> Iterator[tuple[int, int]]:
    """(first, end) of consecutive rows whose tokens, padded to the longest of them, are at most `most`; one or more."""
    lo = longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > lo and longest * (row + 1 - lo) > most:
            yield lo, row
            lo, longest = row, length
    yield lo, len(lengths)


def padded(
    prompts: Sequence[Sequence[int]], device: torch.device, cache: ModelCache
) -> tuple[torch.Tensor, ModelCache, torch.Tensor | None]:
    """(tokens_BT, cache, n_new_B): the prompts at the left of their rows, and their lengths where these differ.

    A prompt may be empty if another is not: its row appends nothing.
    """
    lengths = [len(prompt) for prompt in prompts]
    tokens_BT = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = torch.as_tensor(prompt)
    n_new_B = None if len(set(lengths)) == 1 else torch.tensor(lengths, device=device)
    return tokens_BT.to(device), cache, n_new_B


def _on_host(sent: tuple[torch.Tensor, torch.cuda.Event | None]) -> list[int]:
    tokens_B, event = sent
    if event is not None:
        event.synchronize()
    return tokens_B.tolist()
