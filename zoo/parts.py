"""Every family of parts that a recipe chooses from by `kind`: those of blocks/, and those of zoo's own rooms. No torch.

A part is a config class without torch and the class that runs, which the config names; see blocks/registry.py. What a
family is for, and what its parts define, stands in the docstring of its base class.
"""

from zoo.blocks.registry import FAMILIES, MIXERS, PATTERNS, POSITIONS, PROJECTIONS, Family, NameOf, PartOf

__all__ = [
    "FAMILIES",
    "FEED_FORWARDS",
    "LOGGERS",
    "MIXERS",
    "OPTIMIZERS",
    "PATTERNS",
    "POSITIONS",
    "PROJECTIONS",
    "SCHEDULES",
    "SOURCES",
    "TASKS",
    "TOKENIZERS",
    "Family",
    "NameOf",
    "PartOf",
]


def _family(*arguments, **options) -> Family:
    family = Family(*arguments, **options)
    FAMILIES[family.name] = family
    return family


FEED_FORWARDS = _family(
    "ffns",
    "feed-forward",
    "zoo.feed_forward.base:FeedForwardConfig",
    {
        "swiglu": "zoo.feed_forward.dense_config:SwiGLU",
        "geglu": "zoo.feed_forward.dense_config:GeGLU",
        "gelu": "zoo.feed_forward.dense_config:GELU",
        "relu2": "zoo.feed_forward.dense_config:ReLU2",
        "moe": "zoo.feed_forward.moe_config:MoE",
    },
    "What each layer does to every token by itself: `model.ffn`, `model.ffns`.",
    default="swiglu",
)
OPTIMIZERS = _family(
    "optimizers",
    "optimiser",
    "zoo.training.optimizers.base:OptimizerConfig",
    {"adamw": "zoo.training.optimizers.adamw_config:AdamW"},
    "How weights follow gradients: `train.optimizer`.",
    default="adamw",
)
SCHEDULES = _family(
    "schedules",
    "learning-rate schedule",
    "zoo.training.schedules:ScheduleConfig",
    {
        "cosine": "zoo.training.schedules:Cosine",
        "linear": "zoo.training.schedules:Linear",
        "wsd": "zoo.training.schedules:WarmupStableDecay",
    },
    "The learning rate over time: `train.schedule`.",
    default="cosine",
)
SOURCES = _family(
    "sources",
    "source",
    "zoo.data.config:Source",
    {
        "python-stdlib": "zoo.data.config:PythonStdlib",
        "text": "zoo.data.config:TextFiles",
        "jsonl": "zoo.data.config:JsonLines",
        "parquet": "zoo.data.config:Parquet",
        "huggingface": "zoo.data.config:HuggingFaceDataset",
        "mds": "zoo.data.config:Mds",
        "synthetic": "zoo.data.config:Synthetic",
    },
    "Where rows come from: `data.source`, `data.sources`, `data.validation_source`.",
)
TOKENIZERS = _family(
    "tokenizers",
    "tokenizer",
    "zoo.data.config:TokenizerConfig",
    {
        "byte": "zoo.data.config:ByteTokenizer",
        "bpe": "zoo.data.config:BpeTokenizer",
        "huggingface": "zoo.data.config:HuggingFaceTokenizer",
    },
    "How text becomes tokens: `data.tokenizer`.",
)
LOGGERS = _family(
    "loggers",
    "logger",
    "zoo.training.logger_config:LoggerConfig",
    {
        "jsonl": "zoo.training.logger_config:JsonLinesLogger",
        "tensorboard": "zoo.training.logger_config:TensorBoardLogger",
        "wandb": "zoo.training.logger_config:WandBLogger",
        "mlflow": "zoo.training.logger_config:MLflowLogger",
    },
    "Where metrics go in addition to the run folder: the names in `train.loggers`.",
)
TASKS = _family(
    "tasks",
    "task",
    "zoo.evaluation.task:Task",
    {
        "mqar": "zoo.evaluation.tasks.recall_config:Mqar",
        "compositional_mqar": "zoo.evaluation.tasks.recall_config:CompositionalMqar",
        "forgetting_mqar": "zoo.evaluation.tasks.recall_config:ForgettingMqar",
        "copy": "zoo.evaluation.tasks.recall_config:Copy",
        "induction": "zoo.evaluation.tasks.recall_config:Induction",
        "niah_single_1": "zoo.evaluation.tasks.needles_config:NiahSingle1",
        "niah_single_2": "zoo.evaluation.tasks.needles_config:NiahSingle2",
        "niah_single_3": "zoo.evaluation.tasks.needles_config:NiahSingle3",
        "niah_multikey_1": "zoo.evaluation.tasks.needles_config:NiahMultiKey1",
        "niah_multikey_2": "zoo.evaluation.tasks.needles_config:NiahMultiKey2",
        "niah_multikey_3": "zoo.evaluation.tasks.needles_config:NiahMultiKey3",
        "niah_multivalue": "zoo.evaluation.tasks.needles_config:NiahMultiValue",
        "niah_multiquery": "zoo.evaluation.tasks.needles_config:NiahMultiQuery",
        "variable_tracking": "zoo.evaluation.tasks.aggregation_config:VariableTracking",
        "common_words": "zoo.evaluation.tasks.aggregation_config:CommonWords",
        "frequent_words": "zoo.evaluation.tasks.aggregation_config:FrequentWords",
        "loss_by_position": "zoo.evaluation.tasks.language_config:LossByPosition",
        "perplexity": "zoo.evaluation.tasks.language_config:Perplexity",
        "hellaswag": "zoo.evaluation.tasks.choices_config:HellaSwag",
        "piqa": "zoo.evaluation.tasks.choices_config:Piqa",
        "winogrande": "zoo.evaluation.tasks.choices_config:WinoGrande",
        "arc_easy": "zoo.evaluation.tasks.choices_config:ArcEasy",
        "arc_challenge": "zoo.evaluation.tasks.choices_config:ArcChallenge",
        "boolq": "zoo.evaluation.tasks.choices_config:BoolQ",
        "openbookqa": "zoo.evaluation.tasks.choices_config:OpenBookQA",
        "sciq": "zoo.evaluation.tasks.choices_config:SciQ",
        "copa": "zoo.evaluation.tasks.choices_config:Copa",
        "commonsense_qa": "zoo.evaluation.tasks.choices_config:CommonsenseQA",
        "social_iqa": "zoo.evaluation.tasks.choices_config:SocialIQa",
        "lambada": "zoo.evaluation.tasks.choices_config:Lambada",
        "mmlu": "zoo.evaluation.tasks.choices_config:Mmlu",
        "common_sense_bits": "zoo.evaluation.tasks.gold_config:CommonSenseBits",
    },
    "What a model is scored on: `zoo eval --tasks`, `eval.tasks`.",
    tag="task",
    or_methods=("examples", "score"),
    states=("title", "measures", "data_from", "metrics"),
)
