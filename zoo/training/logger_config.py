"""Where metrics go, as a recipe names it in `train.loggers`. No torch.

A logger of another package is one of Composer's, or a subclass of `composer.loggers.LoggerDestination`.
"""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.fields import Kinded


class LoggerConfig(Kinded):
    """A logger. It has no fields: services are set up by their own environment variables (WANDB_PROJECT, ...).

    module: "package.module:function", called as function(run_name, run_dir), returns a logger of Composer; "" for what
    is always written.  package: the library it needs, and extra: what of attention-zoo installs that; "" for none.
    """

    module: ClassVar[str] = ""
    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""


class JsonLinesLogger(LoggerConfig):
    """metrics.jsonl in the run folder: one JSON object a batch and a validation. Always written."""

    kind: Literal["jsonl"] = Field("jsonl", description="Always written.")


class TensorBoardLogger(LoggerConfig):
    """TensorBoard events in the run folder. Always written."""

    kind: Literal["tensorboard"] = Field("tensorboard", description="Always written.")


class WandBLogger(LoggerConfig):
    """Weights & Biases: one run for each run folder, unless WANDB_RUN_ID names another."""

    module: ClassVar[str] = "zoo.training.loggers:make_wandb"
    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"

    kind: Literal["wandb"] = Field("wandb", description="Weights & Biases.")


class MLflowLogger(LoggerConfig):
    """MLflow: one run for each run folder, unless MLFLOW_RUN_ID names another."""

    module: ClassVar[str] = "zoo.training.loggers:make_mlflow"
    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"

    kind: Literal["mlflow"] = Field("mlflow", description="MLflow.")
