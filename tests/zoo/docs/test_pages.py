"""The generated pages: one for each kind and recipe, whose examples work. MkDocs is not needed."""

import posixpath
import re
import shlex
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import typer
import yaml
from pydantic import Field

from zoo import build_model
from zoo.blocks import block_kinds, config_class, register, registry
from zoo.blocks.about import About, Paper
from zoo.blocks.config import BlockConfig
from zoo.blocks.cost import Cost
from zoo.cli import app
from zoo.docs import benchmarks, commands_page, inline, kinds, pages, recipes
from zoo.docs.docstrings import as_markdown
from zoo.docs.fields import field_table
from zoo.errors import ZooError
from zoo.recipe import load_recipe
from zoo.report.colours import of_patterns

ROOT = Path(__file__).parents[3]
KINDS = [kind for kind, _ in block_kinds()]
FENCE = re.compile(r'^ *```(\w+)(?: title="([^"]*)")?\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site() -> dict[str, str]:
    return pages.generated(ROOT, app)


@pytest.fixture(scope="module")
def written(site) -> dict[str, str]:
    return {path: text for path, text in site.items() if path.endswith(".md")}


def test_every_kind_and_every_recipe_has_a_page(site):
    assert {f"reference/blocks/{kind}.md" for kind in KINDS} <= site.keys()
    files = [path for path in (ROOT / "recipes").rglob("*.yaml") if not path.name.startswith(("_", "study"))]
    assert len(files) >= 20
    assert {recipes.page_of(path.relative_to(ROOT)) for path in files} <= site.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_says_all_there_is(kind, site):
    page, config = site[f"reference/blocks/{kind}.md"], config_class(kind)
    for heading in ("What it computes", "What a query sees", "Fields", "Cost and cache", "Minimal recipe", "Papers"):
        assert f"\n## {heading}\n" in page
    for name, field in config.model_fields.items():
        if name != "kind":
            assert f"| `{name}` |" in page
            assert (field.description or "") in page
    for part in config.parts or (None,):
        if kinds.example(config).resolve(256, part=part).attention is None:
            assert "no attention map" in page
            continue
        name = "_".join(filter(None, (kind, part, "map")))
        assert f"]({name}.svg)" in page
        assert site[f"reference/blocks/{name}.svg"].startswith("<svg")
    assert "$$" in page
    assert "https://arxiv.org/abs/" in page


@pytest.mark.parametrize("kind", KINDS)
def test_the_minimal_recipe_of_a_kind_loads_and_builds(kind, site, tmp_path):
    (text,) = [text for language, _, text in FENCE.findall(site[f"reference/blocks/{kind}.md"]) if language == "yaml"]
    path = tmp_path / f"minimal_{kind}.yaml"
    path.write_text(text)
    recipe = load_recipe(path)
    assert {layer.kind for layer in recipe.model.expanded()} == {kind}
    build_model(recipe, device="meta")


@pytest.mark.parametrize("kind", KINDS)
def test_the_python_example_of_a_kind_runs(kind, site):
    (text,) = [found for lang, _, found in FENCE.findall(site[f"reference/blocks/{kind}.md"]) if lang == "python"]
    names: dict = {}
    exec(compile(text, kind, "exec"), names)
    assert names["y"].shape == (2, 128, kinds.D_MODEL)
    assert names["y"].isfinite().all()


def test_the_gallery_has_a_line_for_each_published_model(site):
    page = site["reference/recipes/models/index.md"]
    gallery = page[page.index('<div class="zoo-gallery">') : page.index("| recipe |")]
    lines = dict(re.findall(r'<a href="#(\w+)">\w+</a><div class="zoo-strip"[^>]*>(.*?)</div>', gallery))
    files = sorted((ROOT / "recipes" / "models").glob("*.yaml"))
    assert len(lines) == len(files) >= 13
    for file in files:
        recipe = load_recipe(file)
        assert lines[recipe.name].count('class="zoo-cell"') == len(recipe.model.expanded())
        assert f"\n## {recipe.name}\n" in page
    legend = next(line for line in gallery.splitlines() if "zoo-legend" in line)
    for pattern in ("full", "window", "chunked"):
        assert f"background:{of_patterns([pattern])[0]}" in legend


def test_maps_stand_inside_a_page_where_their_text_has_its_colour():
    svg = '<svg><text fill="currentColor"/></svg>'
    image = '<img alt="Map of &quot;x&quot;" class="zoo-map" src="x_map.svg" style="width: 15rem" />'
    html = f"<p>{image}</p><p><img alt='other' src='x.png'></p>"
    found = inline.with_maps(html, "reference/blocks/x.md", {"reference/blocks/x_map.svg": svg})
    assert f'style="width: 15rem" data-search-exclude>{svg}</span>' in found
    assert 'aria-label="Map of &quot;x&quot;"' in found
    assert "<img alt='other' src='x.png'>" in found
    assert inline.with_maps(html, "reference/x.md", {}) == html


def test_the_page_of_a_recipe_has_the_file_and_what_it_resolves_to(site, tmp_path):
    for path in recipes.recipe_files(ROOT):
        page = site[recipes.page_of(path)]
        file, resolved = (text for language, _, text in FENCE.findall(page) if language == "yaml")
        assert file == (ROOT / path).read_text()
        (tmp_path / "resolved.yaml").write_text("\n".join(line[4:] for line in resolved.splitlines()))
        recipe = load_recipe(ROOT / path)
        assert load_recipe(tmp_path / "resolved.yaml") == recipe
        assert page.count('class="zoo-cell" style') >= len(recipe.model.expanded())
        name = f"zoo:{path.relative_to('recipes').with_suffix('')}"  # works in any folder
        assert f"zoo train {name}\n" in page
        assert load_recipe(name) == recipe


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        ("15Btok", "15 billion tokens"),
        ("1.5Mtok", "1.5 million tokens"),
        ("1_000ba", "1,000 batches"),
        ("1ep", "1 epoch"),
    ],
)
def test_a_duration_is_stated_in_words(duration, words):
    assert recipes._in_words(duration) == words


def test_every_command_on_a_page_exists_with_its_options(written):
    root = typer.main.get_command(app)
    lines = {line.split("#")[0].strip() for page in written.values() for line in _commands(page)}
    assert len(lines) > 80
    for line in lines:
        command, words = root, shlex.split(line)[1:]
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, line


def _commands(page: str) -> list[str]:
    return [line for language, _, text in FENCE.findall(page) if language == "bash" for line in text.splitlines()]


def test_the_command_reference_lists_every_command_and_option():
    page = commands_page.commands_page(app)
    found = dict(commands_page.commands(typer.main.get_command(app), "zoo"))
    assert {"zoo train", "zoo data prepare", "zoo docs build"} <= found.keys()
    for path, command in found.items():
        section = page.split(f"## {path}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                assert all(option in section for option in parameter.opts), (path, parameter.name)


def test_links_between_pages_lead_somewhere(site):
    files = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*") if path.is_file()}
    for page, text in site.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", FENCE.sub("", text)):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            assert place in files | site.keys(), f"{page}: {target}"


def test_hand_written_pages_link_to_pages_and_headings_that_are_generated(site):
    found = 0
    for page in (ROOT / "docs").glob("*.md"):
        for target, _, heading in re.findall(r"\]\((reference/[^)#]+)(#([^)]+))?\)", page.read_text()):
            found += 1
            assert target in site, f"{page.name}: {target}"
            assert not heading or re.search(rf"^#+ .*\b{heading}\b", site[target], re.MULTILINE), (
                f"{page.name}: {heading}"
            )
    assert found > 2


def test_links_of_a_benchmark_page_lead_there_from_the_list_too(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    text = "# Speed\n\nMade of [a](one.json), [b](https://b.org), [c](../log.md).\n\nMore [d](two.json).\n"
    (tmp_path / "benchmarks" / "speed.md").write_text(text)
    shown = benchmarks.benchmarks_page(tmp_path)
    about = "Made of [a](../benchmarks/one.json), [b](https://b.org), [c](../benchmarks/../log.md)."
    assert f"## [Speed](../benchmarks/speed.md)\n\n{about}\n" in shown


def test_the_navigation_has_every_page(site):
    def leaves(node):
        if isinstance(node, str):
            yield node
        else:
            for inner in node.values() if isinstance(node, dict) else node:
                yield from leaves(inner)

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    entered = [*leaves(config["nav"]), *leaves(pages.navigation(site, ROOT))]
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(entered) == sorted(written | {path for path in site if path.endswith(".md")})


class ShoutConfig(BlockConfig):
    """A block from elsewhere.

    width: of <everything>.
    """

    about: ClassVar[About] = About(
        equations="$$ y = x $$", papers=(Paper("A paper", "2401.00001"),), formulas={"parameters.map": "d_model*width"}
    )
    kind: Literal["shout"] = Field("shout", description="Shout.")
    width: int = Field(8, ge=1, description="Width | of it.")

    def cost(self, d_model: int, seq_len: int, part: str | None = None) -> Cost:
        return Cost({"map": d_model * self.width, "other": 3}, {}, 5, 7)


@pytest.fixture
def shout(monkeypatch):
    monkeypatch.setattr(registry.MIXERS, "own", dict(registry.MIXERS.own))
    monkeypatch.setattr("zoo.docs.shouting", ShoutConfig, raising=False)
    register("shout", "zoo.docs:shouting")
    return "reference/blocks/shout.md"


def test_a_kind_of_another_package_gets_a_page_the_same_way(shout):
    page = kinds.kind_pages()[shout]
    assert "$$ y = x $$" in page
    assert "[arXiv 2401.00001](https://arxiv.org/abs/2401.00001)" in page
    assert "width: of &lt;everything&gt;." in page
    assert "This kind is not made of patterns" in page
    assert r"| `width` | whole number | >= 1 | `8` | Width \| of it. |" in page
    assert r"| map | $D \, \text{width}$ | 2,048 |" in page
    assert "| other |  | 3 |" in page
    assert "| allocated |  | 7 |" in page
    assert not any("shout" in path for path in kinds.kind_maps())


def test_a_page_whose_formula_is_wrong_is_refused(shout, monkeypatch):
    monkeypatch.setattr(ShoutConfig, "about", About(formulas={"cache.held": "seq_len"}))
    with pytest.raises(ZooError, match=r"shout: formula cache\.held = seq_len gives 1024; cost counts 7"):
        kinds.kind_pages()


@pytest.mark.parametrize("name", ["grid_point", "cost"])
def test_a_kind_of_another_package_that_raises_does_not_stop_the_rest(shout, monkeypatch, name):
    def fails(*arguments):
        raise KeyError("not here")

    monkeypatch.setattr(ShoutConfig, name, fails)
    found = kinds.kind_pages()
    assert "could not be written" in found[shout]
    assert "KeyError: 'not here'" in found[shout]
    assert "## Cost and cache" in found["reference/blocks/nsa.md"]
    assert not any("shout" in path for path in kinds.kind_maps())


def test_a_kind_of_our_own_that_raises_stops_the_build(monkeypatch):
    monkeypatch.setattr(config_class("nsa"), "cost", lambda *arguments: None)
    with pytest.raises(AttributeError):
        kinds.kind_pages()


def test_without_a_checkout_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "__file__", str(tmp_path / "site-packages" / "zoo" / "docs" / "pages.py"))
    with pytest.raises(ZooError, match="needs a checkout of the repository"):
        pages.checkout()


def test_bounds_and_types_of_fields():
    schema = {
        "properties": {
            "n": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 4096}, {"type": "null"}], "default": None},
            "eps": {"type": "number", "exclusiveMinimum": 0, "default": 1e-6},
            "how": {"enum": ["mean", "mlp"], "default": "mean"},
            "many": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 4},
        },
        "required": ["many"],
    }
    assert field_table(schema, {}).splitlines()[2:] == [
        "| `n` | whole number | 1 to 4,096 |  |  |",
        "| `eps` | number | > 0 | `1e-06` |  |",
        "| `how` | `mean` or `mlp` |  | `mean` |  |",
        "| `many` | list of text | 1 to 4 entries | required |  |",
    ]


def test_docstrings_as_markdown():
    found = as_markdown("Make <it>.\n\n    x: a `[T, T]` map, T * T\n    of all.\n    Returns [B].\n")
    assert found == "Make &lt;it&gt;.\n\nx: a `[T, T]` map, T \\* T\nof all.<br>\nReturns \\[B\\]."


def test_a_map_is_as_wide_as_its_panels(site):
    """The drawings have no size of their own: one panel alone filled the page."""
    page = site["reference/blocks/ansa.md"]
    assert re.findall(r"\((ansa_\w+_map\.svg)\)\{ \.zoo-map style=\"width: min\(100%, (\d+)rem\)\" \}", page) == [
        ("ansa_local_map.svg", "15"),
        ("ansa_global_map.svg", "30"),
    ]
