"""`zoo.generate`: continue prompts with a model, piece by piece or all at once.

for piece in zoo.generate("runs/quickstart", "def "):
    print(piece.text, end="", flush=True)

texts = zoo.generate(model, ["def ", "class "], temperature=0.7, stop=["\\n\\n"]).texts
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.data.packing import Tokenizer
from zoo.errors import ZooError
from zoo.inference.decoding import Decoding
from zoo.inference.errors import GenerationError
from zoo.inference.prompts import Prompt, encode
from zoo.inference.rows import Piece, Row
from zoo.inference.sampling import Sampler, Sampling
from zoo.inference.stats import Stats, cache_bytes
from zoo.model import Decoder

GIB = 2**30


@dataclass(frozen=True)
class Result:
    """A prompt and what followed it. `text` is None without a tokenizer; `tokens` are all that were drawn, those of a
    stop string and the end of the document included; `finish` says why it ended, as in `Piece`."""

    prompt: Prompt
    text: str | None
    tokens: list[int]
    finish: str


class Generation:
    """Prompts being continued. Iterate for the pieces as they come; `results`, `texts` wait for the end.

    Nothing is computed before one of these is asked for, and an iteration that was left is taken up by the next.
    """

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Prompt],
        tokenizer: Tokenizer | None,
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str],
        say: Callable[[str], object] = warnings.warn,
    ):
        self._model, self._prompts, self._tokenizer, self._say = model, list(prompts), tokenizer, say
        config = model.config
        self._encoded = encode(self._prompts, tokenizer, config)
        self._check(max_tokens, stop)
        # A model that has read max_seq_len tokens was trained to predict one more, which is drawn and never read.
        room = [config.max_seq_len + 1 - len(prompt) for prompt in self._encoded]
        self._rows = [
            Row(
                index, min(max_tokens, left), "max_tokens" if max_tokens <= left else "context", tokenizer, stop, prompt
            )
            for index, (left, prompt) in enumerate(zip(room, self._encoded, strict=True))
        ]
        n_known = min(tokenizer.vocab_size, config.vocab_size) if tokenizer else config.vocab_size
        device = model.embedding.weight.device
        self._sampler = Sampler(sampling, self._encoded, config.vocab_size, n_known, device)
        lengths = [len(prompt) for prompt in self._encoded]
        self._most = max(row.most for row in self._rows)
        self.stats = Stats(rows=len(lengths), room=max(lengths) + self._most, prompt_tokens=sum(lengths))
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    @property
    def results(self) -> list[Result]:
        """One for each prompt, in their order; generates what is left to generate."""
        for _ in self._pieces:
            pass
        has_text = self._tokenizer is not None
        pairs = zip(self._prompts, self._rows, strict=True)
        return [Result(prompt, row.text if has_text else None, row.tokens, row.finish or "") for prompt, row in pairs]

    @property
    def texts(self) -> list[str | None]:
        """The text that followed each prompt; generates what is left to generate."""
        return [result.text for result in self.results]

    def _check(self, max_tokens: int, stop: Sequence[str]) -> None:
        if max_tokens < 1:
            raise GenerationError(f"max_tokens: must be at least 1; found {max_tokens}")
        if any(not isinstance(string, str) or not string for string in stop):
            raise GenerationError(f"stop: must be strings that are not empty; found {list(stop)}")
        if stop and self._tokenizer is None:
            raise GenerationError("stop: the model has no tokenizer, so there is no text to stop at")

    def _run(self) -> Iterator[Piece]:
        stats, start = self.stats, time.perf_counter()
        decoding = Decoding(self._model, self._sampler, self._new_cache(), self._say)
        for drawn in self._drawn(decoding):
            now = time.perf_counter()
            if not stats.new_tokens:
                stats.first_token_s = now - start
            stats.decode_s = now - start - stats.first_token_s
            stats.cuda_graph = decoding.graph is not None
            going_on = [row for row in self._rows if row.finish is None]
            stats.new_tokens += len(going_on)
            pieces = [row.take(drawn[row.index]) for row in going_on]
            yield from pieces
            if all(piece.finish for piece in pieces):
                return

    def _drawn(self, decoding: Decoding) -> Iterator[list[int]]:
        try:
            yield from decoding.run(self._encoded, self._most)
        except torch.OutOfMemoryError as error:
            rows, longest = len(self._rows), max(map(len, self._encoded))
            raise ZooError(
                f"out of memory: reading {rows} prompts of up to {longest:,} tokens; give fewer at once, or shorter"
            ) from error

    def _new_cache(self):
        batch, room, weight = len(self._rows), self.stats.room, self._model.embedding.weight
        try:
            cache = self._model.new_cache(batch, room)
        except torch.OutOfMemoryError as error:
            from zoo.counting.cache_sizes import cache_sizes

            sizes = cache_sizes(self._model.config, room, weight.element_size())
            need = batch * sum(size.held_bytes for size in sizes.values()) / GIB
            raise ZooError(f"out of memory: the cache of {batch} x {room:,} tokens takes {need:,.1f} GiB") from error
        self.stats.cache = cache_bytes(self._model.config, cache, weight.dtype)
        return cache


def generate(
    model: Decoder | str | Path,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_tokens: int = 256,
    stop: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    device: str = "auto",
    dtype: str = "auto",
    say: Callable[[str], object] = warnings.warn,
    **sampling,
) -> Generation:
    """Continue prompts with a model; nothing is computed before the result is iterated or asked for its `texts`.

    model: a Decoder, or a run folder, which is loaded to `device` in `dtype` as `load_for_generation` says.
    prompts: a text, or a sequence of texts and of sequences of token numbers, continued side by side.
    max_tokens: most tokens for each prompt. The model reads max_seq_len tokens at most, the prompt's included, and the
    one that it predicts after them is the last one drawn: prompt and text are max_seq_len + 1 tokens at most.
    stop: strings at which a text ends; they are not part of it.
    tokenizer: default that of the run folder (`zoo.load_tokenizer`).
    say: told why, should decoding be slower than it could be.
    sampling: fields of `zoo.inference.sampling.Sampling`: temperature, top_k, top_p, min_p, repetition_penalty, seed.
    Raises GenerationError for settings or prompts that nothing can be generated from, LoadError for a run folder.
    """
    settings = Sampling(**sampling)
    if not isinstance(model, Decoder):
        from zoo.inference.placing import load_for_generation

        model = load_for_generation(model, device, dtype)
    if tokenizer is None and (folder := getattr(model, "loaded_from", None)) is not None:
        from zoo.runs.weights import load_tokenizer

        tokenizer = load_tokenizer(folder)
    texts: Sequence[Any] = [prompts] if isinstance(prompts, str) else prompts
    stop = [stop] if isinstance(stop, str) else stop
    return Generation(model, texts, tokenizer, settings, max_tokens, list(stop), say)
