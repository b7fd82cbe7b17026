"""Tasks as recipes and `zoo eval --tasks` name them: a task, a group of them, or a mapping with settings. No numpy."""

from typing import Annotated, Any

from pydantic_core import PydanticCustomError, core_schema

from zoo.blocks.registry import refusal, union_of
from zoo.errors import shorten, unknown
from zoo.parts import TASKS

_SINGLE = ("niah_single_1", "niah_single_2", "niah_single_3")
_NIAH = (
    *_SINGLE,
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
)
# A name for several tasks, in the order in which they are shown.
GROUPS: dict[str, tuple[str, ...]] = {
    "recall": ("mqar", "compositional_mqar", "forgetting_mqar", "copy", "induction"),
    "niah_single": _SINGLE,
    "niah": _NIAH,
    "ruler": (*_NIAH, "variable_tracking", "common_words", "frequent_words"),
    "common_sense": (
        "hellaswag",
        "piqa",
        "winogrande",
        "arc_easy",
        "arc_challenge",
        "boolq",
        "openbookqa",
        "sciq",
        "copa",
        "commonsense_qa",
        "social_iqa",
        "lambada",
    ),
}


def members(name: str) -> tuple[str, ...]:
    """The tasks of a group; the task itself if the name is none of a group."""
    return GROUPS.get(name, (name,))


def unknown_task(name: Any) -> str | None:
    """Why a name is that of no task and no group, with the nearest one; None if it is one."""
    if isinstance(name, str) and (name in GROUPS or TASKS.knows(name)):
        return None
    return unknown("task", name, [*GROUPS, *TASKS.kinds()])


class _TaskEntry:
    """Annotation of an entry of `eval.tasks`, which is checked and kept as it is written."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        """The union of all tasks; `names`: what a text or the tag of a mapping may be -> the tasks that it means."""
        return {**union_of(TASKS, handler), "names": {name: members(name) for name in (*GROUPS, *TASKS.kinds())}}

    def _check(self, value: Any) -> str | dict[str, Any]:
        """The value itself. Raises ValidationError with the key inside a mapping that is wrong."""
        if not isinstance(value, str | dict):
            shape = "must be a name, or a mapping with the key task"
            raise refusal(_custom(f"{shape}; found {shorten(value)}"), (), value)
        path = () if isinstance(value, str) else (TASKS.tag,)
        if isinstance(value, dict) and TASKS.tag not in value:
            raise refusal("union_tag_not_found", (), value, discriminator=f"'{TASKS.tag}'")
        name = value if isinstance(value, str) else value[TASKS.tag]
        if why := unknown_task(name):
            raise refusal(_custom(why), path, value)
        for member in members(name):
            try:
                config = TASKS.config_class(member)
            except ValueError as error:
                raise refusal(_custom(str(error)), path, value) from error
            if isinstance(value, dict):
                config.model_validate({**value, TASKS.tag: member})
        return value


def _custom(why: str) -> PydanticCustomError:
    return PydanticCustomError("part", "{why}", {"why": why})


TaskEntry = Annotated[str | dict[str, Any], _TaskEntry()]
