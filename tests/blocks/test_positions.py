"""Position embeddings by kind: the zoo's own as the rotary fields spell them, and one of another package."""

import sys
import types
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field, ValidationError

from zoo.blocks import build, config_class, register
from zoo.blocks.base import Context
from zoo.blocks.cache import Step
from zoo.blocks.fields import Positive
from zoo.blocks.positions.base import PositionConfig
from zoo.blocks.positions.rotary import RopeTable, rope_table
from zoo.blocks.registry import POSITIONS

GQA = {"n_heads": 4, "n_kv_heads": 2}
MLA = {"n_heads": 4, "head_dim": 6, "rope_dim": 4, "kv_rank": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale_all_dim": 1.0}
KINDS = {
    "full": GQA,
    "window": {**GQA, "window": 5},
    "mla": MLA,
    "ansa": {"n_heads": 4, "n_kv_heads": 2, "rope_dim": 4, "window": 5, "n_selected": 4},
}


class Fading(PositionConfig):
    """Rotary, and scores that fade by a factor for each token between query and key: queries and keys differ."""

    module: ClassVar[str] = "zoo_fading:FadingPositions"
    keys_differ: ClassVar[bool] = True

    kind: Literal["fading"] = Field("fading", description="Fading.")
    share: Positive = Field(0.9, lt=1, description="What is left of a score after a token.")


class FadingPositions:
    keys_differ = True

    def __init__(self, config: Fading):
        self.share, self.values = config.share, config.values

    def table(self, positions_BT, dim, dtype, keys):
        table = rope_table(positions_BT, dim, 100.0, None, dtype)
        factor_BT1 = self.share ** (-positions_BT if keys else positions_BT).to(dtype)[..., None]
        return RopeTable(table.cos_BTR * factor_BT1, table.sin_BTR * factor_BT1)


@pytest.fixture
def fading(monkeypatch):
    module = types.ModuleType("zoo_fading")
    module.Fading, module.FadingPositions = Fading, FadingPositions
    monkeypatch.setitem(sys.modules, "zoo_fading", module)
    monkeypatch.setattr(POSITIONS, "own", dict(POSITIONS.own))
    register("fading", "zoo_fading:Fading", family="positions")
    return {"kind": "fading", "share": 0.8}


SPELT = [
    ({"rope": False}, {"kind": "none"}),
    ({"rope_theta": 100.0}, {"kind": "rotary", "theta": 100.0}),
    ({"rope_scaling": YARN}, {"kind": "rotary", "scaling": YARN}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("short", "position"), SPELT, ids=["none", "theta", "yarn"])
def test_the_rotary_fields_and_the_kind_are_the_same_block(kind, short, position, noise):
    cls = config_class(kind)
    blocks, part = [], (cls.parts or (None,))[-1]
    for fields in (short, {"position": position}):
        torch.manual_seed(0)
        config = cls.model_validate(KINDS[kind] | fields)
        blocks.append(build(config, 24, part).double())
    assert cls.model_validate(KINDS[kind] | short).resolve(24, 40, part) == config.resolve(24, 40, part)
    x, context = noise(2, 20, 24), Context.for_tokens(2, 20)
    assert torch.equal(blocks[0](x, context), blocks[1](x, context))


def test_a_kind_of_another_package_turns_queries_and_keys(fading, make, noise):
    """Its scores are those of the formula, and tokens read one by one through a cache give the same."""
    block, x = make({"kind": "full", **GQA, "head_dim": 6, "position": fading}), noise(2, 12, 24)
    context = Context.for_tokens(2, 12)
    queries, (entries,) = block.projection(x, context)
    keys = block.projection.rotate(entries, context)["key"]
    plain = make({"kind": "full", **GQA, "head_dim": 6, "rope_theta": 100.0})
    plain_queries, (plain_entries,) = plain.projection(x, context)
    plain_keys = plain.projection.rotate(plain_entries, context)["key"]
    scores = torch.einsum("btd,bsd->bts", queries.q[:, :, 0], keys[:, :, 0])
    plain_scores = torch.einsum("btd,bsd->bts", plain_queries.q[:, :, 0], plain_keys[:, :, 0])
    apart = torch.arange(12)[:, None] - torch.arange(12)
    torch.testing.assert_close(scores, plain_scores * 0.8 ** apart.double())

    whole, cache = block(x, context), block.new_cache(2, 12, dtype=torch.float64)
    for at in range(12):
        step = Step.after(torch.full((2,), at), 1, None, fresh=at == 0)
        torch.testing.assert_close(block(x[:, at : at + 1], step, cache), whole[:, at : at + 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_it_reaches_every_kind_and_costs_no_parameters(fading, kind, noise):
    cls, x = config_class(kind), noise(1, 20, 24)
    part = (cls.parts or (None,))[-1]
    plain, other = (cls.model_validate(KINDS[kind] | more) for more in ({}, {"position": fading}))
    assert plain.cost(24, 64, part) == other.cost(24, 64, part)
    outputs = []
    for config in (plain, other):
        torch.manual_seed(0)
        outputs.append(build(config, 24, part).double()(x, Context.for_tokens(1, 20)))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-6


WRONG = {
    "an unknown kind": ({"position": {"kind": "fades"}}, ("position",), "'fades'"),
    "no kind": ({"position": {"share": 0.5}}, ("position",), "kind"),
    "a field": ({"position": {"kind": "fading", "share": 2.0}}, ("position", "share"), "less than 1"),
    "both spellings": ({"position": {"kind": "fading"}, "rope_theta": 100.0}, ("rope_theta",), r"left out where posit"),
    "rotation of none": ({"position": {"kind": "none"}, "rope_fraction": 0.5}, ("rope_fraction",), "without rotation"),
}


@pytest.mark.parametrize(("fields", "path", "why"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named(fading, fields, path, why):
    with pytest.raises(ValidationError, match=why) as caught:
        config_class("full").model_validate(GQA | fields)
    assert path in [tuple(error["loc"]) for error in caught.value.errors()]
