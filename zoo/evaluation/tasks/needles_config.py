"""Needles in a haystack: RULER's eight retrieval tasks. No numpy; the prompts: zoo/evaluation/tasks/needles.py."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.evaluation.tasks.long_context_config import WithHaystack

DEPTHS = 40  # even steps from the beginning to the end
Kind = Literal["numbers", "words", "uuids"]


class Needle(WithHaystack):
    """What the eight tasks share: keys, values, and how many of each are hidden and asked for."""

    module: ClassVar[str] = "zoo.evaluation.tasks.needles:NeedleRows"
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
    depths: int = Field(DEPTHS, ge=1, description="Number of depths of the first needle, evenly spaced from 0 to 1.")


class NiahSingle1(Needle):
    """One needle with a number, in noise."""

    title: ClassVar[str] = "Single needle 1"
    measures: ClassVar[str] = "retrieval of a number from repeated noise"

    task: Literal["niah_single_1"] = "niah_single_1"


class _InProse(Needle):
    haystack: Literal["noise", "text", "needles"] = Field("text", description="The filler; text: prose.")


class _AmongNeedles(Needle):
    needles_only: ClassVar[bool] = True
    version: ClassVar[int] = 2  # 1 ranked the answer among values that are not in the text


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
    measures: ClassVar[str] = "retrieval by key among needles whose keys and values are UUIDs"

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
