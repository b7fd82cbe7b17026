"""Needles in a haystack: RULER's eight retrieval tasks. A needle is a sentence that gives the value of a key."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from zoo.evaluation.task import ModelFacts, Prompt
from zoo.evaluation.tasks import words
from zoo.evaluation.tasks.haystack import Laid, encode, joined, lay, room_for
from zoo.evaluation.tasks.long_context import N_OPTIONS, WithHaystack

DEPTHS = 40  # even steps from the beginning to the end
Kind = Literal["numbers", "words", "uuids"]


class Needle(WithHaystack):
    """What the eight tasks share: keys, values, and how many of each are hidden and asked for."""

    facets: ClassVar[tuple[str, ...]] = ("length", "depth", "length_depth")
    n_keys: ClassVar[int] = 1
    n_values: ClassVar[int] = 1
    n_queries: ClassVar[int] = 1
    needles_only: ClassVar[bool] = False  # the haystack is made of needles

    haystack: Literal["noise", "text", "needles"] = Field(  # type: ignore[assignment] # one more than other tasks have
        "noise", description="The filler; text: prose."
    )
    keys: Kind = Field("words", description="What the keys are.")
    values: Kind = Field("numbers", description="What the values are.")
    depths: int = Field(DEPTHS, ge=1, description="Even steps at which the first needle stands, from 0 to 1.")

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        fill = None if self._of_needles else self.filler(model, length)
        for row in range(self.n_rows):
            yield self._prompt(model, length, row, fill)

    @property
    def _of_needles(self) -> bool:
        return self.needles_only or self.haystack == "needles"

    def _prompt(self, model: ModelFacts, length: int, row: int, fill) -> Prompt:
        rng = self.row_rng(length, row)
        depth = (row % self.depths) / max(1, self.depths - 1)
        keys = words.MAKERS[self.keys](rng, self.n_keys)
        values = words.MAKERS[self.values](rng, self.n_keys * self.n_values + N_OPTIONS)
        distractors, values = values[-N_OPTIONS:], values[:-N_OPTIONS]
        hidden = [(key, values[i * self.n_values + j]) for i, key in enumerate(keys) for j in range(self.n_values)]
        asked = keys[: self.n_queries]
        answers = [value for key, value in hidden if key in asked]
        head, tail = encode(model, self._head()), encode(model, self._question(asked))
        max_tokens = self.to_generate(model, answers)
        sentences = [encode(model, _needle(self.values, key, value)) for key, value in hidden]
        # The first needle stands at the row's depth, the others anywhere.
        where = [depth, *rng.random(len(hidden) - 1).tolist()]
        available = length - (max_tokens if self.generate else max(len(encode(model, f" {a}")) for a in answers))
        if fill is None:
            laid = self._among_needles(
                model, rng, head, sentences, where, tail, available, {*keys}, {*values, *distractors}
            )
        else:
            laid = lay(head, list(zip(where, sentences, strict=True)), tail, lambda n: fill.cut(n, rng), available)
        others = [value for key, value in hidden if key not in asked] + distractors
        facets = {"length": length, "depth": round(depth, 3), "length_depth": f"{length}/{depth:.3f}"}
        facets["starts"] = laid.starts
        return self.make(model, laid.tokens, answers, others, max_tokens, **facets)

    def _among_needles(self, model, rng, head, sentences, where, tail, available, keys, values):
        """The prompt with needles of other keys and values around; the rest, shorter than a needle, is noise."""
        room = room_for(head, sentences, tail, available)
        made, used = [], 0
        while True:
            (key,), (value,) = words.MAKERS[self.keys](rng, 1), words.MAKERS[self.values](rng, 1)
            if key in keys or value in values:
                continue
            sentence = encode(model, _needle(self.values, key, value))
            if used + len(sentence) > room:
                break
            keys.add(key)
            values.add(value)
            made.append(sentence)
            used += len(sentence)
        before = [round(depth * len(made)) for depth in where]
        order = sorted(range(len(sentences)), key=lambda i: before[i])
        noise = encode(model, "Here is nothing to note. ")
        rest = (noise * (1 + (room - used) // len(noise)))[: room - used]
        tokens, starts, at = [*head, *rest], {}, 0
        for index in order:
            tokens += joined(made[at : before[index]])
            at = max(at, before[index])
            starts[index] = len(tokens)
            tokens += sentences[index]
        return Laid((*tokens, *joined(made[at:]), *tail), tuple(starts[i] for i in range(len(sentences))))

    def _head(self) -> str:
        return f"The text below hides special magic {self.values}. Remember them: a question about them follows it.\n"

    def _question(self, asked: list[str]) -> str:
        listed = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])} and {asked[-1]}"
        many = self.n_values * len(asked) > 1
        verb, noun = ("are all", self.values) if many else ("is", self.values.removesuffix("s"))
        begin = "are" if many else "is"
        return (
            f"\nQuestion: What {verb} the special magic {noun} for {listed} in the text above?\n"
            f"Answer: The special magic {noun} for {listed} {begin}:"
        )


def _needle(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}. "


class NiahSingle1(Needle):
    """One needle with a number, in noise."""

    title: ClassVar[str] = "Single needle 1"
    measures: ClassVar[str] = "retrieval of a number from repeated noise"
    task: Literal["niah_single_1"] = "niah_single_1"


class _InProse(Needle):
    haystack: Literal["noise", "text", "needles"] = Field("text", description="The filler; text: prose.")


class _AmongNeedles(Needle):
    needles_only: ClassVar[bool] = True


class NiahSingle2(_InProse):
    """One needle with a number, in prose."""

    title: ClassVar[str] = "Single needle 2"
    measures: ClassVar[str] = "retrieval of a number from prose"
    task: Literal["niah_single_2"] = "niah_single_2"


class NiahSingle3(_InProse):
    """One needle with a UUID, in prose."""

    title: ClassVar[str] = "Single needle 3"
    measures: ClassVar[str] = "retrieval of a UUID from prose"
    task: Literal["niah_single_3"] = "niah_single_3"
    values: Kind = Field("uuids", description="What the values are.")


class NiahMultiKey1(_InProse):
    """Four needles with different keys in prose; one is asked for."""

    title: ClassVar[str] = "Multi-key needle 1"
    measures: ClassVar[str] = "retrieval by key, with three other keys in the text"
    n_keys: ClassVar[int] = 4
    task: Literal["niah_multikey_1"] = "niah_multikey_1"


class NiahMultiKey2(_AmongNeedles):
    """One needle among as many others as fit."""

    title: ClassVar[str] = "Multi-key needle 2"
    measures: ClassVar[str] = "retrieval by key, where the whole text is needles"
    task: Literal["niah_multikey_2"] = "niah_multikey_2"


class NiahMultiKey3(_AmongNeedles):
    """One needle among as many others as fit, keys and values UUIDs."""

    title: ClassVar[str] = "Multi-key needle 3"
    measures: ClassVar[str] = "retrieval by key among needles, keys and values UUIDs"
    task: Literal["niah_multikey_3"] = "niah_multikey_3"
    keys: Kind = Field("uuids", description="What the keys are.")
    values: Kind = Field("uuids", description="What the values are.")


class NiahMultiValue(_InProse):
    """Four needles with one key; all four values are asked for."""

    title: ClassVar[str] = "Multi-value needle"
    measures: ClassVar[str] = "retrieval of four values of one key"
    n_values: ClassVar[int] = 4
    task: Literal["niah_multivalue"] = "niah_multivalue"


class NiahMultiQuery(_InProse):
    """Four needles with different keys; all four are asked for."""

    title: ClassVar[str] = "Multi-query needle"
    measures: ClassVar[str] = "retrieval of the values of four keys"
    n_keys: ClassVar[int] = 4
    n_queries: ClassVar[int] = 4
    task: Literal["niah_multiquery"] = "niah_multiquery"
