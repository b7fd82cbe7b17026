"""A model under evaluation: what every kind must offer, and a run of the zoo as one.

Shapes: B rows, T tokens, N places, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zoo.blocks.interface import LayerCache
from zoo.counting.memory_needed import cache_row_bytes, reading_row_bytes
from zoo.data.packing import Tokenizer
from zoo.data.preparing import digest
from zoo.data.tokenizers import cuts, encode_each
from zoo.errors import ZooError
from zoo.evaluation.batching import floor_power, padded_length
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.held_out import HeldOut
from zoo.files import present
from zoo.model.cache import ModelCache

LOGITS_AT_ONCE = 1 << 27  # numbers of [N, V] in one part, even where more memory is free


class Subject(ABC):
    """A causal language model that can be asked.

    tokenizer: None if it reads plain numbers.  start: the token that stands for an empty context; None if no token may.
    max_len: most tokens of a row.  longest: most that it can compute at all, None if any number.
    data, held_out: the data section it was trained with, and validation rows; None where not known.
    digest: of the weights, so that results of other weights are not taken for theirs.  config_digest: of what computes
    with them, where it can change by itself: an edited model.yaml.
    repeats: whether a call that ran out of memory may be made again with less; not where other processes take part.
    """

    name: str
    tokenizer: Tokenizer | None
    vocab_size: int
    max_len: int
    start: int | None = None
    longest: int | None = None
    data: Any = None
    held_out: Any = None
    digest: str | None = None
    config_digest: str | None = None
    device: torch.device = torch.device("cpu")
    dtype_name: str = "fp32"
    repeats: bool = True

    def row_bytes(self, length: int) -> int:
        """About how many bytes a row of `length` tokens takes while it is read, logits apart; 0 if not known."""
        return 0

    def cache_row_bytes(self, max_len: int) -> int:
        """How many bytes a cache takes for each row of up to max_len tokens; 0 if not known."""
        return 0

    @abstractmethod
    def logits(
        self,
        tokens_BT: torch.Tensor,
        row_N: torch.Tensor,
        position_N: torch.Tensor,
        document_starts_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [N, V], float32, of the token after position_N[i] of row row_N[i].

        tokens_BT: int64 on `device`; rows are padded on the right with any token, which no place before it sees.
        document_starts_BT: bool, read by models that keep the documents of a row apart; None: rows are one document.
        """

    def logits_parts(
        self,
        tokens_BT: torch.Tensor,
        row_N: torch.Tensor,
        position_N: torch.Tensor,
        document_starts_BT: torch.Tensor | None = None,
        *,
        at_once: int,
    ) -> Iterator[torch.Tensor]:
        """The rows of `logits` in order, in tensors of at most at_once of them, or of one row of tokens.

        row_N ascends. Here the batch is split by rows, as many each time, so that few shapes occur and every row is
        computed once. A model that can compute its head by itself runs the rest once, for all rows.
        """
        most = int(torch.bincount(row_N).max())
        for asked in self._by_rows(at_once // most, tokens_BT, row_N, position_N, document_starts_BT):
            yield self.logits(*asked)

    @staticmethod
    def _by_rows(n_rows: int, tokens_BT, row_N, position_N, document_starts_BT) -> Iterator[tuple]:
        """The arguments of `logits` for groups of rows: of n_rows or the power of two below it, at least one."""
        ends_B = torch.bincount(row_N, minlength=len(tokens_BT)).cumsum(0).tolist()
        n_rows = floor_power(max(1, n_rows))
        for lo in range(0, len(ends_B), n_rows):
            hi = min(lo + n_rows, len(ends_B))
            begin, end = ends_B[lo - 1] if lo else 0, ends_B[hi - 1]
            if begin < end:  # not only rows of padding
                starts = None if document_starts_BT is None else document_starts_BT[lo:hi]
                yield tokens_BT[lo:hi], row_N[begin:end] - lo, position_N[begin:end], starts

    @abstractmethod
    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """The likeliest tokens after each prompt, one by one: up to max_tokens, or to the end of the document."""

    @property
    def has_cache(self) -> bool:
        """Whether a text can be read once and continued in several ways: `new_cache`, `append` and `head` work."""
        return False

    def new_cache(self, rows: int, max_len: int) -> ModelCache:
        """An empty cache of up to max_len tokens in each row.  Only where `has_cache`."""
        raise NotImplementedError(f"{self.name}: has no cache")

    def append(self, tokens_BT: torch.Tensor, cache: ModelCache, n_new_B: torch.Tensor | None) -> torch.Tensor:
        """Final hidden states [B, T, C] of tokens that follow those of the cache; n_new_B: of each row, or all."""
        raise NotImplementedError(f"{self.name}: has no cache")

    def head(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """Logits [N, V], float32, of final hidden states [N, C]."""
        raise NotImplementedError(f"{self.name}: has no cache")

    def encode(self, text: str) -> list[int]:
        """Numbers of a text, without a start and without an end token."""
        return self.encode_each([text])[0]

    def encode_each(self, texts: Sequence[str], begins: Sequence[bool] | None = None) -> list[list[int]]:
        """The numbers of each text, as `encode`: many texts take a fraction of the time of one call a text.

        begins: as zoo.data.tokenizers.encode_each.
        """
        if self.tokenizer is None:
            raise EvaluationError(
                f"{self.name}: reads plain numbers and has no tokenizer, so a text task cannot be given"
            )
        return encode_each(self.tokenizer, texts, begins)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Numbers of each context and of its continuation, cut where the harness of EleutherAI cuts them.

        White space at the end of the context belongs to the continuation, as tokenizers put it at the front of words.
        The two are encoded together, and the continuation is what lies beyond as many tokens as the context has alone.
        Where the tokenizer splits between the two in any case, each is encoded alone, and so is a text that several
        options share.
        """
        stripped = [context.rstrip() for context, _ in pairs]
        whole = [context + continuation for context, continuation in pairs]
        cut = cuts(self.tokenizer, whole, [len(context) for context in stripped])
        rest = [
            text[len(context) :] if apart else text for text, context, apart in zip(whole, stripped, cut, strict=True)
        ]
        wanted = [*((context, True) for context in stripped if context), *zip(rest, (not c for c in cut), strict=True)]
        different = list(dict.fromkeys(wanted))
        numbers = self.encode_each([text for text, _ in different], [begins for _, begins in different])
        known = dict(zip(different, numbers, strict=True))
        made = []
        for context, text, apart in zip(stripped, rest, cut, strict=True):
            found = known[text, not apart]
            if context:
                before = known[context, True]
                made.append((before, found) if apart else (found[: len(before)], found[len(before) :]))
            elif self.start is None:
                raise EvaluationError(
                    f"{self.name}: an empty context needs a start token, and the tokenizer names none"
                )
            else:
                made.append(([self.start], found))
        return made


class ZooSubject(Subject):
    """A trained run of the zoo."""

    def __init__(self, run: str | Path, device: str = "auto", dtype: str = "auto"):
        from zoo.inference.placing import load_for_generation
        from zoo.runs.weights import load_tokenizer

        folder = Path(run)
        self._set(load_for_generation(folder, device, dtype), load_tokenizer(folder), str(run))
        self.digest = _digest(folder)
        self.config_digest = digest(self.model.config.model_dump(mode="json", exclude_defaults=True))
        recipe = _recipe(folder)
        if recipe is not None:
            self.data = recipe.data
            self.held_out = HeldOut(recipe.data, max_seq_len=self.max_len, vocab_size=self.vocab_size, seed=recipe.seed)

    @classmethod
    def of_model(cls, model, tokenizer: Tokenizer | None, name: str = "model", data: Any = None) -> "ZooSubject":
        """A zoo.model.Decoder that is in memory, as while it trains."""
        subject = cls.__new__(cls)
        subject._set(model, tokenizer, name)
        subject.data = data
        return subject

    def _set(self, model, tokenizer: Tokenizer | None, name: str) -> None:
        weight = model.embedding.weight
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.vocab_size, self.max_len = model.config.vocab_size, model.config.max_seq_len
        self.start = None if tokenizer is None else tokenizer.end_of_document  # documents begin after it in training
        self.device = weight.device
        self.dtype_name = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(weight.dtype, "fp32")
        self._counts: dict[tuple[str, int], int] = {}

    def row_bytes(self, length):
        return self._counted(reading_row_bytes, length)

    def cache_row_bytes(self, max_len):
        return self._counted(cache_row_bytes, max_len)

    def _counted(self, count: Callable[[Any, int, int], int], length: int) -> int:
        """`count` of the model's recipe, for a length that is rounded up: a count takes 20 ms with 24 layers."""
        key = count.__name__, padded_length(length)
        if key not in self._counts:
            self._counts[key] = count(self.model.config, key[1], self.model.embedding.weight.element_size())
        return self._counts[key]

    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        return self.head(self._hidden(tokens_BT, row_N, position_N, document_starts_BT))

    def logits_parts(self, tokens_BT, row_N, position_N, document_starts_BT=None, *, at_once):
        at_once = min(at_once, max(1, LOGITS_AT_ONCE // self.vocab_size))
        for hidden_NC in self._hidden(tokens_BT, row_N, position_N, document_starts_BT).split(at_once):
            yield self.head(hidden_NC)

    @torch.no_grad()
    def _hidden(self, tokens_BT, row_N, position_N, document_starts_BT):
        """Final hidden states [N, C] of the places."""
        return self.model.hidden(tokens_BT, document_starts_BT)[row_N, position_N]

    @torch.no_grad()
    def head(self, hidden_NC):
        return self.model.logits(hidden_NC).float()

    @cached_property
    def has_cache(self) -> bool:
        """Whether every layer keeps a cache whose rows can be copied."""
        try:
            cache = self.model.new_cache(1, 1, torch.device("meta"))
        except ZooError:  # a block of another package without one
            return False
        return all(isinstance(layer, LayerCache) for layer in cache.layers)

    def new_cache(self, rows, max_len):
        return self.model.new_cache(rows, max_len)

    def append(self, tokens_BT, cache, n_new_B):
        return self.model.append(tokens_BT, cache, n_new_B)

    def greedy(self, prompts, max_tokens):
        from zoo.inference.generate import generate

        result = generate(self.model, prompts, max_tokens=max_tokens, tokenizer=self.tokenizer, temperature=0.0)
        return [each.tokens for each in result.results]


class Untrained(Subject):
    """What is known of a model before it is trained: enough to make the examples of tasks, and to check them."""

    def __init__(self, recipe: Any, prepared: Any):
        self.name, self.data = f"a model of recipe {recipe.name}", recipe.data
        self.vocab_size, self.max_len = recipe.model.vocab_size, recipe.model.max_seq_len
        self.tokenizer = prepared.tokenizer
        self.start = None if self.tokenizer is None else self.tokenizer.end_of_document
        self.held_out = HeldOut.of_prepared(prepared)

    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        raise NotImplementedError("the model is not trained yet")

    def greedy(self, prompts, max_tokens):
        raise NotImplementedError("the model is not trained yet")


def _recipe(folder: Path):
    """The recipe of a run folder; None where the folder holds a model alone."""
    from zoo.recipe import load_recipe

    path = folder / "recipe.yaml"
    return load_recipe(path, of_run=True) if present(path) else None


def _digest(folder: Path) -> str | None:
    from zoo.files import sha256

    found = sorted(folder.glob("*.safetensors"))
    return sha256(found[0]) if len(found) == 1 else None


def with_data(subject: Subject, file: Path, folder: str | Path) -> None:
    """Let a subject take its held-out text from the `data` section of a file, made of its own tokens."""
    from zoo.data.tokenizers import Bytes
    from zoo.evaluation.held_out import data_section

    is_bytes = isinstance(subject.tokenizer, Bytes)
    data = data_section(file, None if subject.tokenizer is None else Path(folder), is_bytes)
    subject.held_out = HeldOut(data, max_seq_len=subject.max_len, vocab_size=subject.vocab_size, seed=0, name=str(file))
