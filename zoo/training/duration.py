"""Spans of training as recipes write them: `2000ba`, `15_000_000_000tok`, `15Btok`, `1.5ep`, `0.02dur`."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from zoo.errors import shorten

_PATTERN = r"^(\d[\d_]{0,20}(?:\.\d{1,12})?(?:[eE]\+?\d{1,2})?)([KMBT]?)(ba|tok|ep|dur)$"
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LARGEST = 10**18
_FORMS = "a number and a unit: ba (batches), tok (tokens), ep (epochs)"


@dataclass(frozen=True)
class Span:
    """A length of training. `value` is a whole number of `ba` or `tok`, or a decimal number of `ep` or `dur`."""

    value: Decimal
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Read `15Btok`; raises ValueError that says what would be right."""
        match = re.fullmatch(_PATTERN, text)
        if match is None:
            examples = "2000ba, 15Btok, 15_000_000_000tok or 1.5ep"
            raise ValueError(f"must be {_FORMS}, e.g. {examples}; found {shorten(text)}")
        number, factor, unit = match.groups()
        value = Decimal(number.replace("_", "")) * _FACTORS[factor]
        if value > _LARGEST:
            raise ValueError(f"must be at most 1e18; found {text!r}")
        if unit in ("ba", "tok") and value != value.to_integral_value():
            raise ValueError(f"must be a whole number of {'batches' if unit == 'ba' else 'tokens'}; found {text!r}")
        return cls(value, unit)

    def batches(self, tokens_per_batch: int, batches_per_epoch: int, total_batches: int | None = None) -> int:
        """The span in batches, rounded up so that at least the stated amount is done.

        total_batches: the whole training, which a `dur` is a share of; needed for that unit alone.
        """
        if self.unit == "ba":
            return int(self.value)
        if self.unit == "tok":
            return -(-int(self.value) // tokens_per_batch)
        whole = batches_per_epoch if self.unit == "ep" else total_batches
        assert whole is not None, "a share of the duration needs the duration"
        return math.ceil(self.value * whole)


def _duration(text: str) -> str:
    span = Span.parse(text)
    if span.unit == "dur":
        raise ValueError(f"must be {_FORMS}; dur is a share of this very value; found {text!r}")
    if span.value == 0:
        raise ValueError(f"must be more than 0; found {text!r}")
    return text


def _part(text: str) -> str:
    span = Span.parse(text)
    if span.unit == "dur" and span.value > 1:
        raise ValueError(f"must be at most 1dur, the whole training; found {text!r}")
    return text


def _interval(text: str) -> str:
    if Span.parse(_part(text)).value == 0:
        raise ValueError(f"must be more than 0; found {text!r}")
    return text


def _has_a_unit(value: object) -> object:
    if isinstance(value, int | float):
        raise ValueError(f"must be {_FORMS}, such as {value}ba; found {value}")
    return value


_UNIT = BeforeValidator(_has_a_unit)
_SCHEMA = WithJsonSchema({"type": "string", "pattern": _PATTERN})

Duration = Annotated[str, _UNIT, AfterValidator(_duration), _SCHEMA]  # a whole training: ba, tok, ep
Part = Annotated[str, _UNIT, AfterValidator(_part), _SCHEMA]  # a part of it, may be 0: ba, tok, ep or dur
Interval = Annotated[str, _UNIT, AfterValidator(_interval), _SCHEMA]  # a part of it, not 0
