"""Common-sense and knowledge tasks. No numpy; the questions: zoo/evaluation/tasks/choices.py.

Two ways to write the questions, `form: olmes` (OLMES, arXiv 2406.08446: cloze prompts) and `form: harness` (the default
prompts of EleutherAI's lm-evaluation-harness). Both rank the answers' texts, unless a form ranks letters.
"""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import Paper
from zoo.evaluation import package_data
from zoo.evaluation.task import Metric, Task

METRICS = (
    Metric("accuracy", about="share of the questions whose right answer is the likeliest"),
    Metric("accuracy_norm", about="the same with log-likelihoods divided by the characters of the answer"),
    Metric("bits_per_byte", "lower", False, about="of the right answer: moves before accuracy leaves chance"),
    Metric("brier", "lower", False, about="squared distance of the options' probabilities from the truth, 0 to 2"),
)


class MultipleChoice(Task):
    """A question with a few answers, of which one is right."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:MultipleChoiceRows"
    metrics: ClassVar = METRICS
    data_from: ClassVar[str] = package_data.PACKAGE
    table: ClassVar[str]
    n_rows: ClassVar[int]
    n_options: ClassVar[int]
    requests_5shot: ClassVar[str | None] = None

    form: Literal["olmes", "harness"] = Field("olmes", description="Whose wording of the questions to use.")
    shots: Literal[0, 5] = Field(0, description="Solved questions before each question; with 5, those of OLMES.")

    def missing(self) -> str | None:
        return package_data.missing()

    @classmethod
    def row_count(cls) -> str:
        return f"{cls.n_rows:,}"

    @classmethod
    def chance_text(cls) -> str:
        return f"{1 / cls.n_options:.0%}"


class HellaSwag(MultipleChoice):
    """Which ending follows? Everyday scenes and instructions (arXiv 1905.07830)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:HellaSwagRows"
    title: ClassVar[str] = "HellaSwag"
    measures: ClassVar[str] = "plausible continuation of everyday scenes"
    papers: ClassVar = (Paper("HellaSwag: Can a Machine Really Finish Your Sentence? (Zellers 2019)", "1905.07830"),)
    table: ClassVar[str] = "hellaswag/none/validation"
    n_rows: ClassVar[int] = 10_042
    n_options: ClassVar[int] = 4
    requests_5shot: ClassVar[str] = "hellaswag/val_rc_5shot"

    task: Literal["hellaswag"] = "hellaswag"


class Piqa(MultipleChoice):
    """Which of two ways reaches the goal? Physical common sense (arXiv 1911.11641)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:PiqaRows"
    title: ClassVar[str] = "PIQA"
    measures: ClassVar[str] = "physical common sense"
    papers: ClassVar = (Paper("PIQA: Reasoning about Physical Commonsense (Bisk 2019)", "1911.11641"),)
    table: ClassVar[str] = "piqa/plain_text/validation"
    n_rows: ClassVar[int] = 1_838
    n_options: ClassVar[int] = 2
    requests_5shot: ClassVar[str] = "piqa/val_rc_5shot"

    task: Literal["piqa"] = "piqa"


class WinoGrande(MultipleChoice):
    """Whom does the blank mean? The rest of the sentence is scored after each name (arXiv 1907.10641)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:WinoGrandeRows"
    title: ClassVar[str] = "WinoGrande"
    measures: ClassVar[str] = "reference of a pronoun by common sense"
    papers: ClassVar = (Paper("WinoGrande: Winograd Schemas at Scale (Sakaguchi 2019)", "1907.10641"),)
    table: ClassVar[str] = "winogrande/winogrande_xl/validation"
    n_rows: ClassVar[int] = 1_267
    n_options: ClassVar[int] = 2
    requests_5shot: ClassVar[str] = "winogrande/val_rc_5shot"

    task: Literal["winogrande"] = "winogrande"


class Arc(MultipleChoice):
    """Science questions from school examinations (arXiv 1803.05457)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:ArcRows"
    papers: ClassVar = (Paper("Think you have Solved Question Answering? Try ARC (Clark 2018)", "1803.05457"),)
    n_options: ClassVar[int] = 4


class ArcEasy(Arc):
    """Science questions from school examinations, the easy part (arXiv 1803.05457)."""

    title: ClassVar[str] = "ARC easy"
    measures: ClassVar[str] = "school science"
    table: ClassVar[str] = "ai2_arc/ARC-Easy/validation"
    n_rows: ClassVar[int] = 570
    requests_5shot: ClassVar[str] = "arc_easy/val_rc_5shot"

    task: Literal["arc_easy"] = "arc_easy"


class ArcChallenge(Arc):
    """Science questions from school examinations, those that retrieval and co-occurrence got wrong."""

    title: ClassVar[str] = "ARC challenge"
    measures: ClassVar[str] = "school science, hard"
    table: ClassVar[str] = "ai2_arc/ARC-Challenge/validation"
    n_rows: ClassVar[int] = 299
    requests_5shot: ClassVar[str] = "arc_challenge/val_rc_5shot"

    task: Literal["arc_challenge"] = "arc_challenge"


class BoolQ(MultipleChoice):
    """Yes or no, after a passage of Wikipedia (arXiv 1905.10044)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:BoolQRows"
    title: ClassVar[str] = "BoolQ"
    measures: ClassVar[str] = "yes-no questions on a passage"
    papers: ClassVar = (Paper("BoolQ: Natural Yes/No Questions (Clark 2019)", "1905.10044"),)
    n_rows: ClassVar[int] = 3_270
    n_options: ClassVar[int] = 2
    requests_5shot: ClassVar[str] = "boolq/val_rc_5shot"

    task: Literal["boolq"] = "boolq"


class OpenBookQA(MultipleChoice):
    """Science questions that need a fact and common sense (arXiv 1809.02789)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:OpenBookQARows"
    title: ClassVar[str] = "OpenBookQA"
    measures: ClassVar[str] = "school science with common sense"
    papers: ClassVar = (Paper("Can a Suit of Armor Conduct Electricity? (Mihaylov 2018)", "1809.02789"),)
    table: ClassVar[str] = "openbookqa/main/validation"
    n_rows: ClassVar[int] = 500
    n_options: ClassVar[int] = 4
    requests_5shot: ClassVar[str] = "openbookqa/val_rc_5shot"

    task: Literal["openbookqa"] = "openbookqa"


class SciQ(MultipleChoice):
    """Science questions made by crowd workers (arXiv 1707.06209)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:SciQRows"
    title: ClassVar[str] = "SciQ"
    measures: ClassVar[str] = "science facts, mostly after a passage that holds the answer"
    papers: ClassVar = (Paper("Crowdsourcing Multiple Choice Science Questions (Welbl 2017)", "1707.06209"),)
    table: ClassVar[str] = "sciq/none/validation"
    n_rows: ClassVar[int] = 1_000
    n_options: ClassVar[int] = 4
    requests_5shot: ClassVar[str] = "sciq/rc_5shot"

    task: Literal["sciq"] = "sciq"


class Copa(MultipleChoice):
    """Cause or effect of a premise, one of two (Roemmele et al. 2011)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:CopaRows"
    title: ClassVar[str] = "COPA"
    measures: ClassVar[str] = "cause and effect"
    table: ClassVar[str] = "super_glue/copa/validation"
    n_rows: ClassVar[int] = 100
    n_options: ClassVar[int] = 2

    task: Literal["copa"] = "copa"


class CommonsenseQA(MultipleChoice):
    """Five answers to a question about everyday concepts (arXiv 1811.00937). form harness ranks letters."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:CommonsenseQARows"
    title: ClassVar[str] = "CommonsenseQA"
    measures: ClassVar[str] = "relations between everyday concepts"
    papers: ClassVar = (Paper("CommonsenseQA (Talmor 2018)", "1811.00937"),)
    table: ClassVar[str] = "tau/commonsense_qa/none/validation"
    n_rows: ClassVar[int] = 1_221
    n_options: ClassVar[int] = 5
    requests_5shot: ClassVar[str] = "csqa/val_rc_5shot"

    task: Literal["commonsense_qa"] = "commonsense_qa"


class SocialIQa(MultipleChoice):
    """What people feel, want and do next, three answers (arXiv 1904.09728)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:SocialIQaRows"
    title: ClassVar[str] = "Social IQa"
    measures: ClassVar[str] = "social common sense"
    papers: ClassVar = (Paper("SocialIQA: Commonsense Reasoning about Social Interactions (Sap 2019)", "1904.09728"),)
    table: ClassVar[str] = "social_i_qa/none/validation"
    n_rows: ClassVar[int] = 1_954
    n_options: ClassVar[int] = 3
    requests_5shot: ClassVar[str] = "socialiqa/val_rc_5shot"

    task: Literal["social_iqa"] = "social_iqa"


class Mmlu(MultipleChoice):
    """Questions of 57 subjects (arXiv 2009.03300). form harness ranks letters, form olmes the answers' texts."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:MmluRows"
    title: ClassVar[str] = "MMLU"
    measures: ClassVar[str] = "knowledge in 57 subjects"
    papers: ClassVar = (Paper("Measuring Massive Multitask Language Understanding (Hendrycks 2020)", "2009.03300"),)
    table: ClassVar[str] = "hails/mmlu_no_train"
    n_rows: ClassVar[int] = 14_042
    n_options: ClassVar[int] = 4
    facets: ClassVar[tuple[str, ...]] = ("subject",)

    task: Literal["mmlu"] = "mmlu"
    subjects: tuple[str, ...] | None = Field(None, description="Subjects, e.g. [anatomy]. Default: all.")


class Lambada(Task):
    """The last word of a passage, which only its whole context tells (arXiv 1606.06031)."""

    module: ClassVar[str] = "zoo.evaluation.tasks.choices:LambadaRows"
    title: ClassVar[str] = "LAMBADA"
    measures: ClassVar[str] = "prediction of a passage's last word"
    papers: ClassVar = (Paper("The LAMBADA dataset (Paperno 2016)", "1606.06031"),)
    data_from: ClassVar[str] = package_data.PACKAGE
    metrics: ClassVar = (
        Metric("accuracy", about="share of the passages whose last word greedy decoding gives"),
        Metric("bits_per_byte", "lower", False, about="of the last word"),
        Metric("nats", "lower", False, about="of the last word; its exponential is the perplexity"),
    )
    task: Literal["lambada"] = "lambada"

    def missing(self) -> str | None:
        return package_data.missing()

    @classmethod
    def row_count(cls) -> str:
        return "5,153"

    @classmethod
    def chance_text(cls) -> str:
        return "0%"
