"""The results of a training, for summary.json and for the last lines on the screen."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import zoo
from zoo.errors import first_mistake
from zoo.files import FileError
from zoo.runs.folder import RunFolder
from zoo.terminal import called_as


@dataclass(frozen=True)
class Summary:
    """The end of a run. Validation numbers are None where there is no validation split; bits per byte also where the
    bytes of the text are not known.  init_from: the `source` and `sha256` of the weights it began with, None if drawn.
    """

    name: str
    run_dir: Path
    batches: int
    tokens: int
    time_s: float
    parameters: int
    loss_before: float | None
    loss_after: float | None
    bits_per_byte_before: float | None
    bits_per_byte_after: float | None
    sha256: str
    metrics_sha256: str | None = None
    init_from: dict[str, str] | None = None

    def as_dict(self) -> dict:
        """The content of summary.json: every field but the folder, and the version."""
        values = {key: value for key, value in asdict(self).items() if key != "run_dir"}
        return {"version": zoo.__version__, **values}

    @classmethod
    def load(cls, values: dict, folder: RunFolder) -> "Summary":
        """Read what `as_dict` wrote; keys of other versions are left aside.

        Raises FileError if one that is needed is missing, or is no value of its kind.
        """
        try:
            return TypeAdapter(cls).validate_python({**values, "run_dir": folder.path})
        except ValidationError as error:
            version = f"version {values['version']}" if values.get("version") else "an unknown version"
            raise FileError(
                f"{folder.summary}: {first_mistake(error)}; written by {version} of the "
                f"zoo, this is {zoo.__version__}. Remove it, and the same command writes it anew from the checkpoint"
            ) from error

    def headline(self) -> str:
        """Name, batches, tokens and time of the training."""
        return f"{self.name}, {self.batches:,} batches, {self.tokens:,} tokens in {as_time(self.time_s)}"

    def text(self, writes_text: bool = True) -> str:
        """The lines printed at the end of a training.  writes_text: whether the model has a tokenizer."""
        command = called_as()
        lines = [f"done: {self.headline()} of training, {self.parameters:,} parameters"]
        if self.loss_after is not None:
            bits = _change(self.bits_per_byte_before, self.bits_per_byte_after, " bits per byte")
            lines.append(f"validation: {bits or _change(self.loss_before, self.loss_after, ' nats per token')}")
        lines += [
            f"run folder: {self.run_dir}  (weights: model.safetensors, metrics: metrics.jsonl and tensorboard/)",
        ]
        commands = [f'{command} generate {self.run_dir} --prompt "..."'] if writes_text else []
        commands += [f"{command} show {self.run_dir / 'recipe.yaml'}"]
        commands += [f"{Path(command).with_name('tensorboard')} --logdir {self.run_dir}"]
        return "\n".join([*lines, f"try next:   {commands[0]}", *(f"            {other}" for other in commands[1:])])


def _change(before: float | None, after: float | None, unit: str) -> str:
    if after is None:
        return ""
    return (f"{before:.3f} -> " if before is not None else "") + f"{after:.3f}{unit}"


def as_time(seconds: float) -> str:
    """90 -> '1 min 30 s'."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    parts = [f"{hours} h"] if hours else []
    parts += [f"{minutes} min"] if hours or minutes else []
    return " ".join([*parts, f"{whole % 60} s"])
