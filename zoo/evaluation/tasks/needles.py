"""Needles in a haystack: RULER's eight retrieval tasks. A needle is a sentence that gives the value of a key."""

from collections.abc import Iterator

from zoo.evaluation.task import ModelFacts, Prompt
from zoo.evaluation.tasks import words
from zoo.evaluation.tasks.haystack import Laid, encode, encode_each, joined, lay, most_tokens, room_for
from zoo.evaluation.tasks.long_context import WithHaystackRows
from zoo.evaluation.tasks.long_context_config import N_OPTIONS
from zoo.evaluation.tasks.needles_config import Needle


class NeedleRows(WithHaystackRows):
    """Prompts of the eight tasks: needles laid into a filler, and a question."""

    task: Needle

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        fill = None if self._of_needles else self.filler(model, length)
        for row in range(self.n_rows):
            yield self._prompt(model, length, row, fill)

    @property
    def _of_needles(self) -> bool:
        return self.task.needles_only or self.task.haystack == "needles"

    def _prompt(self, model: ModelFacts, length: int, row: int, fill) -> Prompt:
        rng = self.row_rng(length, row)
        depth = (row % self.task.depths) / max(1, self.task.depths - 1)
        keys = words.MAKERS[self.task.keys](rng, self.task.n_keys)
        n_values = self.task.n_values
        values = words.MAKERS[self.task.values](rng, self.task.n_keys * n_values + N_OPTIONS)
        distractors, values = values[-N_OPTIONS:], values[:-N_OPTIONS]
        hidden = [(key, values[i * n_values + j]) for i, key in enumerate(keys) for j in range(n_values)]
        asked = keys[: self.task.n_queries]
        answers = [value for key, value in hidden if key in asked]
        head, tail = encode(model, self._head()), encode(model, self._question(asked))
        max_tokens = self.to_generate(model, answers)
        sentences = encode_each(model, [_needle(self.task.values, key, value) for key, value in hidden])
        # The first needle stands at the row's depth, the others anywhere.
        where = [depth, *rng.random(len(hidden) - 1).tolist()]
        available = length - (max_tokens if self.task.generate else most_tokens(model, answers))
        # Values that the text gives to other keys come first: a model that likes what it has seen must not be right.
        others = [value for key, value in hidden if key not in asked]
        if fill is None:
            laid, around = self._among_needles(
                model, rng, head, sentences, where, tail, available, {*keys}, {*values, *distractors}
            )
            others += rng.permutation(around).tolist()
        else:
            laid = lay(head, list(zip(where, sentences, strict=True)), tail, lambda n: fill.cut(n, rng), available)
        others += distractors
        facets = {"length": length, "depth": round(depth, 3), "length_depth": f"{length}/{depth:.3f}"}
        facets["starts"] = laid.starts
        return self.make(model, laid.tokens, answers, others, max_tokens, **facets)

    def _among_needles(self, model, rng, head, sentences, where, tail, available, keys, values):
        """(prompt, the values around) with needles of other keys around; the rest, shorter than a needle, is noise."""
        room = room_for(head, sentences, tail, available)
        made, around, used = [], [], 0
        while True:
            (key,), (value,) = words.MAKERS[self.task.keys](rng, 1), words.MAKERS[self.task.values](rng, 1)
            if key in keys or value in values:
                continue
            sentence = encode(model, _needle(self.task.values, key, value))
            if used + len(sentence) > room:
                break
            keys.add(key)
            values.add(value)
            made.append(sentence)
            around.append(value)
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
        return Laid((*tokens, *joined(made[at:]), *tail), tuple(starts[i] for i in range(len(sentences)))), around

    def _head(self) -> str:
        what = f"special magic {self.task.values}"
        return f"The text below hides {what}. Remember them: a question about them follows it.\n"

    def _question(self, asked: list[str]) -> str:
        listed = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])} and {asked[-1]}"
        many = self.task.n_values * len(asked) > 1
        verb, noun = ("are all", self.task.values) if many else ("is", self.task.values.removesuffix("s"))
        begin = "are" if many else "is"
        return (
            f"\nQuestion: What {verb} the special magic {noun} for {listed} in the text above?\n"
            f"Answer: The special magic {noun} for {listed} {begin}:"
        )


def _needle(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}. "
