"""The learning-rate schedules: a warm-up, then a form of their own. Plain arithmetic in batches; no torch.

`ScheduleConfig` is the base of every kind; zoo/parts.py holds their names.
"""

import math
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from zoo.blocks.about import About, Paper
from zoo.blocks.checked import NUMBER, Fact, Facts, Kinded
from zoo.training.duration import Interval, Part

Share = Annotated[float, Field(ge=0, le=1)]


class ScheduleConfig(Kinded):
    """Learning rate over time: a linear warm-up from 0 to the peak, then `after_warmup`.

    The warm-up ends on the peak: no batch is spent on a rate of 0.
    """

    warmup: Part = Field("0.02dur", description="Length of the warm-up; dur is a share of the duration.")

    @property
    def decay_span(self) -> str | None:
        """Length of the final decay, as a recipe writes lengths; None if it lasts from the warm-up to the end."""
        return None

    def after_warmup(self, progress: float) -> float:
        """The rate as a share of the peak.  progress: share of the decay that is done, 0 before it, 1 at the end."""
        raise NotImplementedError(f"{type(self).__name__} does not define after_warmup")

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a schedule of another package is asked for."""
        yield Fact("decay_span", lambda: self.decay_span, (str, type(None)))
        for progress in (0.0, 0.5, 1.0):
            yield Fact(f"after_warmup({progress:g})", partial(self.after_warmup, progress), NUMBER)

    def lr_ratio(self, done: int, total: int, warmup: int, decay: int) -> float:
        """The rate of the batch with which `done` batches are done, as a share of the peak.

        total, warmup, decay: batches of the training, of its warm-up, and of its decay at the end.
        """
        if done <= warmup:
            return done / warmup
        return self.after_warmup(min(1.0, max(0.0, 1 - (total - done) / decay)) if decay else 0.0)


class _Decaying(ScheduleConfig):
    """A decay from the end of the warm-up to the end of the training."""

    final_lr_ratio: Share = Field(0.1, description="Learning rate at the end, as a share of the peak.")
    decay: Interval | None = Field(None, description="For kind wsd only.")

    @model_validator(mode="after")
    def _no_decay(self):
        if self.decay is not None:
            raise ValueError(f"decay is for kind: wsd; {self.kind} decays from the end of the warm-up to the end")
        return self


class Cosine(_Decaying):
    """Half a cosine from the peak down to lr x final_lr_ratio (Loshchilov 2016, arXiv 1608.03983)."""

    about: ClassVar[About] = About(
        papers=(Paper("SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov 2016)", "1608.03983"),)
    )

    kind: Literal["cosine"] = Field("cosine", description="Cosine decay after the warm-up.")

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.final_lr_ratio) * (1 - math.cos(math.pi * progress)) / 2


class Linear(_Decaying):
    """A straight line from the peak down to lr x final_lr_ratio."""

    kind: Literal["linear"] = Field("linear", description="Linear decay after the warm-up.")

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.final_lr_ratio) * progress


class WarmupStableDecay(ScheduleConfig):
    """Warm-up, stable, then a linear decay to lr x final_lr_ratio (Hu 2024, arXiv 2404.06395)."""

    about: ClassVar[About] = About(papers=(Paper("MiniCPM (Hu 2024)", "2404.06395"),))

    kind: Literal["wsd"] = Field("wsd", description="Warm-up, stable, then linear decay.")
    final_lr_ratio: Share = Field(0.1, description="Learning rate at the end, as a share of the peak.")
    decay: Interval | None = Field(None, description="Length of the final decay; 0.2dur if not given.")

    @property
    def decay_span(self) -> str:
        return self.decay or "0.2dur"

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.final_lr_ratio) * progress
