"""Random recipes, drawn from the schema: each is refused in words, or trains a step and decodes as its full forward.

Every field of every kind can be drawn, by its type and bounds alone. Seeds are the cases: a failure names its own, and
`random_recipe(seed)` is the recipe.
"""

import functools
import json
import random
import re
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from zoo.counting.model_cost import model_cost
from zoo.counting.run_cost import GPUS, step_size
from zoo.errors import RecipeError
from zoo.kernels import use_implementation
from zoo.model import build_model
from zoo.recipe import ModelConfig, Recipe, load_recipe
from zoo.recipe.schema import recipe_schema
from zoo.report.reach import reach
from zoo.report.show import facts

SMALL = (1, 2, 2, 2, 3, 4, 4, 4, 4, 6, 8, 8, 8, 16)
NUMBERS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 10.0)
WRONG = (-1, 0, "many", True, None, 1.5, [], {"kind": "full"})
TOKENS = 19
PYTHON = re.compile(r"\b(True|False|None)\b|Extra inputs|<class|[{}]'")  # what no reader of YAML has written
OFTEN = {"mixers": ["attention"] * 3}  # the grid of projections and patterns, of which other kinds are points
TRIES = 60  # draws of the fields that a part needs, until they fit together
# Of `model`, what every recipe states; the rest is drawn like any other field.
SIZES = {"vocab_size": 260, "max_seq_len": 24}
PARTS = ("local", "global")  # of ansa
STATED = {"d_model", "n_layers", "vocab_size", "max_seq_len", "blocks", "layers", "ffn", "ffns", "ffn_layers"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A second thread costs more than it saves at these sizes."""
    torch.set_num_threads(1)


@functools.cache
def schema_of(config: Any) -> dict:
    """That of a part, or of a whole recipe."""
    return recipe_schema() if config is None else config.model_json_schema()


class Drawer:
    """Values of a JSON schema: most within their bounds, small, and a few beside them."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.schema = schema_of(None)

    def resolved(self, schema: dict) -> dict:
        while "$ref" in schema:
            found = self.schema
            for key in schema["$ref"].removeprefix("#/").split("/"):
                found = found[key]
            schema = {**found, **{k: v for k, v in schema.items() if k != "$ref"}}
        return schema

    def value(self, schema: dict, share: float) -> Any:
        schema, rng = self.resolved(schema), self.rng
        if rng.random() < 0.004:
            return rng.choice(WRONG)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self.value(rng.choice(schema[union]), share)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        kind = schema.get("type")
        kind = rng.choice(kind) if isinstance(kind, list) else kind
        return getattr(self, f"of_{kind}")(schema, share)

    def of_integer(self, schema: dict, share: float) -> int:
        low, high = schema.get("minimum", 0), schema.get("maximum", 2**31)
        within = [n for n in SMALL if low <= n <= high]
        return self.rng.choice(within or [low])

    def of_number(self, schema: dict, share: float) -> float:
        low, high = schema.get("minimum", -1e9), schema.get("maximum", 1e9)
        above, below = schema.get("exclusiveMinimum", -1e10), schema.get("exclusiveMaximum", 1e10)
        return self.rng.choice([x for x in NUMBERS if low <= x <= high and above < x < below] or [low])

    def of_boolean(self, schema: dict, share: float) -> bool:
        return self.rng.random() < 0.5

    def of_null(self, schema: dict, share: float) -> None:
        return None

    def of_string(self, schema: dict, share: float) -> str:
        return "text"

    def of_array(self, schema: dict, share: float) -> list:
        count = self.rng.randint(schema.get("minItems", 0), min(schema.get("maxItems", 3), 3))
        return [self.value(schema.get("items", {"type": "integer"}), share) for _ in range(count)]

    def of_object(self, schema: dict, share: float) -> dict:
        """Each property with probability `share`; an unknown key now and then."""
        made = {}
        for name, inner in schema.get("properties", {}).items():
            if name == "kind" or name in schema.get("required", ()) or self.rng.random() < share:
                made[name] = self.value(inner, share)
        if self.rng.random() < 0.004:
            made["unknown"] = 1
        return made

    def likely_part(self, family: Any, d_model: int, kind: str | None = None) -> dict:
        """A part of a family of the registry, kind drawn first: kinds with many fields are not rarer than others.

        Four of five are grown field by field, so that options come together which only few draws would hold: a field
        stays if the config has nothing against it. Of the others each field is drawn for itself.
        """
        kinds = dict(family.classes())
        kind = kind or self.rng.choice([*kinds, *OFTEN.get(family.name, ())])
        config = kinds[kind]
        fields = [name for name in schema_of(config)["properties"] if name != "kind"]
        required = schema_of(config).get("required", ())
        needed = [name for name in fields if name in required or name in ("projection", "patterns")]
        share = self.rng.choice([0.05, 0.15, 0.4])
        grown = self.rng.random() < 0.8
        for _ in range(TRIES if grown else 1):
            made = {"kind": kind, **{name: self.field(family, config, name, d_model) for name in needed}}
            if not grown or fits(config, made, d_model):
                break
        optional = [name for name in fields if name not in needed]
        self.rng.shuffle(optional)
        for name in optional:
            if self.rng.random() < (0.5 if grown else share):
                more = made | {name: self.field(family, config, name, d_model)}
                made = more if not grown or self.rng.random() < 0.005 or fits(config, more, d_model) else made
        return made

    def field(self, family: Any, config: Any, name: str, d_model: int) -> Any:
        """A value of a field; the parts of a block of kind attention come from their own families."""
        from zoo.parts import PATTERNS, PROJECTIONS

        if name == "projection":
            return self.likely_part(PROJECTIONS, d_model)
        if name == "patterns":
            kinds = self.rng.sample([kind for kind, _ in PATTERNS.classes()], self.rng.randint(1, 3))
            kinds += [kind for kind in self.rng.choices(["compression", kinds[0], None], [3, 1, 20]) if kind]
            return [self.likely_part(PATTERNS, d_model, kind) for kind in kinds]
        own = Drawer.__new__(Drawer)
        own.rng, own.schema = self.rng, schema_of(config)
        return own.value(own.schema["properties"][name], 0.4)


def fits(config: Any, made: dict, d_model: int) -> bool:
    """Whether a part is one that its config accepts for this width."""
    try:
        return not config.model_validate_json(json.dumps(made)).problems(d_model)
    except ValidationError:
        return False


def random_recipe(seed: int) -> dict:
    """What a recipe says, as YAML would have it."""
    from zoo.parts import FEED_FORWARDS, MIXERS

    drawer, rng = Drawer(seed), random.Random(seed + 10**6)
    d_model = rng.choice([8, 16, 16, 32, 32, 48])
    blocks = {f"b{i}": drawer.likely_part(MIXERS, d_model) for i in range(rng.randint(1, 3))}
    model = {"d_model": d_model, **SIZES, "blocks": blocks}
    model |= layers(drawer, MIXERS, "layers", blocks, rng.randint(1, 4), d_model)
    n_layers = model["n_layers"]
    if rng.random() < 0.3:
        model["ffns"] = {f"f{i}": drawer.likely_part(FEED_FORWARDS, d_model) for i in range(rng.randint(1, 2))}
        model |= layers(drawer, FEED_FORWARDS, "ffn_layers", model["ffns"], n_layers, d_model)
    else:
        model["ffn"] = drawer.likely_part(FEED_FORWARDS, d_model)
    of_model = drawer.resolved(drawer.schema["properties"]["model"])
    grown = rng.random() < 0.8 and accepted(model)
    for name, inner in of_model["properties"].items():
        if name not in STATED and rng.random() < 0.25:
            more = model | {name: drawer.value(inner, 0.3)}
            if isinstance(made := more[name], dict):  # multi_token, which names a block and a feed-forward
                others = {"block": [*blocks, None], "ffn": [*model.get("ffns", ()), None]}
                made |= {key: rng.choice(names) for key, names in others.items() if isinstance(made.get(key), str)}
            model = more if not grown or accepted(more) else model
    return {"name": f"random_{seed}", "model": model}


def accepted(model: dict) -> bool:
    """Whether it is the `model` section of a recipe."""
    try:
        ModelConfig.model_validate_json(json.dumps(model))
    except ValidationError:
        return False
    return True


def layers(drawer: Drawer, family: Any, key: str, parts: dict, n_layers: int, d_model: int) -> dict:
    """A schedule of those names, in one of the forms of the grammar."""
    names, rng = [*parts], drawer.rng
    form = rng.randint(0, 4)
    if form == 0:
        return {key: " ".join(rng.choice(names) for _ in range(n_layers)), "n_layers": n_layers}
    if form == 1:
        return {key: f"{' '.join(names)} ... cut", "n_layers": n_layers}
    if form == 2:
        return {key: f"({rng.choice(names)}*{n_layers})*1", "n_layers": n_layers}
    if form == 3:
        of_ansa = [f"{name}.{part}" for name in names if parts[name].get("kind") == "ansa" for part in PARTS]
        return {key: [rng.choice(of_ansa or names) for _ in range(n_layers)], "n_layers": n_layers}
    listed: list = [rng.choice(names) for _ in range(n_layers)]
    config = dict(family.classes())[parts[names[0]]["kind"]]
    field = rng.choice([name for name in schema_of(config)["properties"] if name != "kind"])
    listed[0] = {"use": names[0], "with": {field: drawer.field(family, config, field, d_model)}}
    return {key: listed, "n_layers": n_layers}


def outcome(seed: int, folder) -> str:
    """ "refused" or "works"; an AssertionError, or whatever was raised, otherwise."""
    path = folder / f"random_{seed}.yaml"
    path.write_text(yaml.dump(random_recipe(seed), sort_keys=False))
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        lines = str(error).split("\n")
    else:
        works(recipe)
        return "works"
    assert [line for line in lines if not line.startswith(f"{path}:") or len(line) > 2000] == []
    assert not [line for line in lines if PYTHON.search(line)]
    return "refused"


def works(recipe: Recipe) -> None:
    """Counts are those of the model, a step of training has finite gradients, decoding is the full forward."""
    model = build_model(recipe, seed=1).double()
    cost = model_cost(recipe.model, TOKENS)
    assert cost.parameters["total"] == sum(p.numel() for p in model.parameters())
    json.dumps(facts(recipe))
    assert step_size(recipe, TOKENS, 2, GPUS["h200"]).activations > 0
    assert reach(recipe.model, TOKENS).unknown is None
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(260, (2, TOKENS), generator=generator)
    starts_BT = torch.zeros(2, TOKENS, dtype=torch.bool)
    starts_BT[0, [0, 1, 8]] = starts_BT[1, 0] = True
    loss = model.loss(tokens_BT, tokens_BT.roll(-1, 1), starts_BT)
    loss.backward()
    assert loss.isfinite()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert not (bad := [name for name, g in grads.items() if g is not None and not g.isfinite().all()]), bad
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer.step()
    model.after_batch()
    model.eval()
    with torch.no_grad():
        whole = model.hidden(tokens_BT)
        assert whole.isfinite().all()
        packed = model.hidden(tokens_BT, starts_BT, isolated=True)
        alone = torch.cat([model.hidden(part) for part in tokens_BT[:1].split([1, 7, TOKENS - 8], 1)], 1)
        torch.testing.assert_close(packed, torch.cat((alone, whole[1:])), rtol=1e-6, atol=1e-8)
        cache = model.new_cache(2, TOKENS)
        parts = [model.append(part, cache) for part in tokens_BT.split([7, 1, 2, TOKENS - 11, 1], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-6, atol=1e-8)
        cache.reset()
        model.append(tokens_BT[:, :9], cache, torch.tensor([9, 4]))
        cache.reorder(torch.tensor([1, 0]))
        rows = model.append(tokens_BT.flip(0)[:, [4, 9]].gather(1, torch.tensor([[0], [1]])), cache)
        torch.testing.assert_close(rows[:, 0], whole[[1, 0], [4, 9]], rtol=1e-6, atol=1e-8)
        meta = build_model(recipe, device="meta").new_cache(2, TOKENS, dtype=torch.bfloat16)
        assert meta.nbytes == 2 * cost.cache_held_bytes


def check(seeds: range, folder) -> None:
    found = {"refused": 0, "works": 0}
    with use_implementation("auto"):
        for seed in seeds:
            try:
                found[outcome(seed, folder)] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}: {json.dumps(random_recipe(seed)['model'])}") from error
    assert min(found.values()) > len(seeds) // 10, found


@pytest.mark.parametrize("start", [0, 10, 20, 30])
def test_a_random_recipe_is_refused_or_works(start, tmp_path):
    check(range(start, start + 10), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("start", range(40, 2040, 100))
def test_two_thousand_random_recipes_are_refused_or_work(start, tmp_path):
    check(range(start, start + 100), tmp_path)


@pytest.mark.slow
def test_every_field_of_every_kind_is_drawn_in_recipes_that_are_accepted():
    """Of the recipes of the long test; a part that is refused whenever a field is given would test nothing of it."""
    from zoo.parts import FEED_FORWARDS, MIXERS, PATTERNS, PROJECTIONS

    families = {"mixers": MIXERS, "ffns": FEED_FORWARDS, "patterns": PATTERNS, "projections": PROJECTIONS}
    missing = {(key, kind, name) for key in families for kind, c in families[key].classes() for name in c.model_fields}
    missing |= {("model", None, name) for name in ModelConfig.model_fields}
    for seed in range(40, 2040):
        model = random_recipe(seed)["model"]
        if accepted(model):
            missing -= {("model", None, name) for name in model}
            parts = [("mixers", part) for part in model["blocks"].values()]
            parts += [("ffns", part) for part in (*model.get("ffns", {}).values(), model.get("ffn", {}))]
            for key, part in parts:
                inside = [("patterns", one) for one in part.get("patterns", ())]
                inside += [("projections", part["projection"])] if isinstance(part.get("projection"), dict) else []
                for family, one in [(key, part), *inside]:
                    missing -= {(family, one.get("kind"), name) for name in one}
        if not missing:
            return
    assert not missing
