"""The first mistake that pydantic finds, as part of a line."""

import pytest
from pydantic import BaseModel, ValidationError

from zoo.errors import first_mistake


class Sizes(BaseModel):
    heads: list[int]


@pytest.mark.parametrize(
    ("value", "options", "wanted"),
    [
        (
            {"heads": [1, "x"]},
            {},
            "model.heads.1: Input should be a valid integer, unable to parse string as an integer",
        ),
        ({"heads": 3}, {"found": True}, "model.heads: Input should be a valid list; found 3"),
        ({}, {}, "model.heads: Field required"),
    ],
)
def test_the_first_mistake_names_the_key_from_above(value, options, wanted):
    with pytest.raises(ValidationError) as caught:
        Sizes.model_validate(value)
    assert first_mistake(caught.value, "model", **options) == wanted


def test_a_mistake_of_the_whole_has_no_key():
    with pytest.raises(ValidationError) as caught:
        Sizes.model_validate(7)
    assert first_mistake(caught.value).startswith("Input should be a valid dictionary")
