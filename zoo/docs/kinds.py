"""The page of each block kind, written from its registry entry. The attention maps need torch."""

import functools
import textwrap
from collections.abc import Iterable
from typing import Any

import yaml

from zoo.blocks import about as texts
from zoo.blocks import block_kinds
from zoo.blocks.about import Paper
from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.registry import PATTERNS, PROJECTIONS
from zoo.blocks.resolved import ResolvedAttention
from zoo.docs import formulas
from zoo.docs.docstrings import as_markdown
from zoo.docs.fields import fields_page
from zoo.errors import ZooError
from zoo.report.show import description, first_line

D_MODEL, SEQ_LEN, MAP_TOKENS = 256, 1024, 256  # of the example on every page
FOLDER = "reference/blocks"
PANEL_REM = 15  # width of one pattern's map on a page


def kind_pages() -> dict[str, str]:
    """Path -> Markdown of the page of every kind, and of their list."""
    known = dict(block_kinds())
    pages = {f"{FOLDER}/{kind}.md": _page_or_reason(kind, config) for kind, config in known.items()}
    return {f"{FOLDER}/index.md": _index(known), **pages}


def kind_maps() -> dict[str, str]:
    """Path -> SVG of the attention map of every kind, or of each of its parts; a kind not made of patterns has none."""
    found: dict[str, str] = {}
    for _, config in block_kinds():
        try:
            block = example(config)
            drawn = [part for part in _parts(block) if _point(block, part) is not None]
        except Exception:  # of another package: its page says why
            if _is_ours(config):
                raise
            continue
        found |= {_map_path(block, part): _map(block, part) for part in drawn}
    return found


def example(config: type[BlockConfig]) -> BlockConfig:
    """The block of a kind's minimal recipe."""
    return config(**config.about.example)


def minimal_recipe(kind: str, config: type[BlockConfig]) -> str:
    """A recipe with four layers of a kind that says everything a recipe must, and trains 20 batches; as YAML."""
    fields = {"kind": kind, **config.about.example}
    model = {
        "d_model": D_MODEL,
        "vocab_size": 264,
        "max_seq_len": SEQ_LEN,
        "ffn": {"kind": "swiglu", "d_ff": 704},
        "blocks": {kind: fields},
        "layers": f"{kind}*4",
    }
    recipe = {
        "name": f"minimal_{kind}",
        "model": model,
        "train": {"duration": "20ba", "batch_size": 4},
        "eval": {"batches": 4},
    }
    return yaml.dump(recipe, sort_keys=False, default_flow_style=None, width=68)


def _page_or_reason(kind: str, config: type[BlockConfig]) -> str:
    """`kind_page`; where a block of another package raises something, a page that says what."""
    try:
        return kind_page(kind, config)
    except ZooError:
        raise
    except Exception as error:
        if _is_ours(config):
            raise
        why = f"{type(error).__name__}: {error}"
        return f"# {kind}\n\nThis page could not be written; `{config.__module__}` raised:\n\n```text\n{why}\n```\n"


def _is_ours(config: type[BlockConfig]) -> bool:
    return config.__module__.startswith("zoo.")


def kind_page(kind: str, config: type[BlockConfig]) -> str:
    """Markdown of the page of one kind.

    Raises ZooError if a formula on it does not give what the kind's `cost` counts.
    """
    block = example(config)
    parts = _parts(block)
    sections = [f"# {kind}", as_markdown(config.__doc__ or ""), _parts_note(kind, config)]
    sections += ["## Minimal recipe", _tab("In a recipe", _minimal(kind, config))]
    sections += [_tab("In your own PyTorch model", _in_python(kind, config)), "## What it computes"]
    if isinstance(block, AttentionConfig):
        sections.append(_every_pair())
    else:
        sections += [_heading(kind, part) + _equations(block, part) for part in parts]
    sections += ["## What a query sees", *(_seen(kind, block, part) for part in parts)]
    sections += [
        "## Fields",
        f"In a recipe: `{kind}: {{kind: {kind}, ...}}` under `model.blocks`.",
        fields_page(config),
    ]
    sections += ["## Cost and cache", _cost_note(block), *(_heading(kind, p) + _costs(kind, block, p) for p in parts)]
    sections.append(_papers(block))
    return "\n\n".join(section for section in sections if section) + "\n"


def _index(known: dict[str, type[BlockConfig]]) -> str:
    rows = "\n".join(f"| [`{kind}`]({kind}.md) | {first_line(config)} |" for kind, config in known.items())
    return (
        "# Blocks\n\nEvery kind of block in the registry, those of installed packages included. Each page is written "
        f"from the kind's config class.\n\n| kind | |\n|---|---|\n{rows}\n"
    )


def _parts(config: BlockConfig) -> tuple[str | None, ...]:
    return config.parts or (None,)


def _point(config: BlockConfig, part: str | None) -> ResolvedAttention | None:
    """The block as projection and patterns; None for a kind that is no point of the grid."""
    return config.resolve(D_MODEL, SEQ_LEN, part).attention


def _heading(kind: str, part: str | None) -> str:
    return f"### {kind}.{part}\n\n" if part else ""


def _parts_note(kind: str, config: type[BlockConfig]) -> str:
    if not config.parts:
        return ""
    named = " and ".join(f"`{kind}.{part}`" for part in config.parts)
    return f"In a schedule {named} name its parts; a bare `{kind}` alternates between them by its own occurrences."


def _equations(config: BlockConfig, part: str | None) -> str:
    """The equations of a kind's own, or of its projection, its patterns and what joins them."""
    point = _point(config, part)
    if point is None or config.about.equations:
        return config.about.equations.strip() or "The config class states no equations (`about`)."
    patterns = [f"**{pattern.kind}.** {pattern.about.equations.strip()}" for pattern in point.patterns]
    end = texts.ONE_PATTERN if len(patterns) == 1 else texts.GATED
    projection = _about_projection(point).equations
    return "\n\n".join(text.strip() for text in (projection, texts.ATTENTION, *patterns, end))


def _every_pair() -> str:
    """Of the generic kind: the equations of every projection and every pattern."""
    each = [("Projection", PROJECTIONS), ("Pattern", PATTERNS)]
    parts = [(f"{what} `{kind}`", part.about) for what, family in each for kind, part in family.classes()]
    described = [f"### {title}\n\n{about.equations.strip()}" for title, about in parts]
    joined = "### Put together\n\n" + texts.ATTENTION.strip() + "\n\n" + texts.GATED.strip()
    end = "A block with one pattern has no gate: $W_O$ reads its output."
    return "\n\n".join([*described, joined, end])


def _map_path(config: BlockConfig, part: str | None) -> str:
    return f"{FOLDER}/{'_'.join(filter(None, (config.kind, part, 'map')))}.svg"


@functools.cache
def _map(config: BlockConfig, part: str | None) -> str:
    from zoo.report.maps import thumbnail

    return thumbnail(config, part, D_MODEL, MAP_TOKENS)


def _seen(kind: str, config: BlockConfig, part: str | None) -> str:
    point = _point(config, part)
    if point is None:
        return "This kind is not made of patterns, so there is no attention map."
    about = description(config, part, D_MODEL)
    name = ".".join(filter(None, (kind, part)))
    caption = f"`{name}` as in the minimal recipe ({about}), {MAP_TOKENS} tokens. Rows are queries, columns keys."
    chosen = " What selection chooses here is random." if point.pattern("selection") else ""
    file = _map_path(config, part).rsplit("/", 1)[-1]
    # The drawing has no size of its own: a panel is as wide on every page, however many stand next to it.
    size = f'style="width: min(100%, {PANEL_REM * len(point.patterns)}rem)"'
    return f"![Attention map of {name}: {about}]({file}){{ .zoo-map {size} }}\n\n{caption}{chosen}"


def _cost_note(config: BlockConfig) -> str:
    values = {name: value for part in _parts(config) for name, value in _values(config, part).items()}
    used = formulas.names_in(f for part in _parts(config) for f in _formulas(config, part).values())
    rows = "\n".join(f"| ${formulas.symbol(name)}$ | `{name}` | {values[name]:,} |" for name in used)
    note = (
        "Of one layer on one row; each formula was compared with the kind's own `cost` when this page was built. The "
        "numbers are those of the minimal recipe's block. A multiplication and an addition are two FLOPs; norms, "
        "rotations and softmax count nothing. *Nominal* is what every token leaves behind, as papers count; "
        "*allocated* is the size of the cache tensors. An element is two bytes in bf16; numbers of a *state* are "
        "in float32."
    )
    return f"{note}\n\n| symbol | field | here |\n|---|---|---:|\n{rows}" if rows else note


def _formulas(config: BlockConfig, part: str | None) -> dict[str, str]:
    point = _point(config, part)
    return dict(config.about.formulas) if point is None else formulas.of_attention(point)


def _values(config: BlockConfig, part: str | None) -> dict[str, Any]:
    return formulas.names_of(config, _point(config, part), D_MODEL, SEQ_LEN)


def _costs(kind: str, config: BlockConfig, part: str | None) -> str:
    """Tables of parameters, FLOPs and cache elements: part, formula, number."""
    known, cost = _formulas(config, part), config.cost(D_MODEL, SEQ_LEN, part)
    formulas.check(known, cost, _values(config, part), kind)
    counted = formulas.counts(cost)
    order = [name for name in known if name in counted] + [name for name in counted if name not in known]
    groups = {"parameters": "parameters", "flops": "forward FLOPs", "cache": "cache, elements"}
    lines = []
    for group, title in groups.items():
        rows = [name for name in order if name.startswith(f"{group}.")]
        lines += [f"| {title} | formula | |", "|---|---|---:|"]
        for name in rows:
            formula = f"${formulas.latex(known[name])}$" if name in known else ""
            shown = "allocated" if name == "cache.held" else name.partition(".")[2].replace("_", " ")
            lines.append(f"| {shown} | {formula} | {counted[name]:,.0f} |")
        if group != "cache":
            lines.append(f"| **total** | | **{sum(counted[name] for name in rows):,.0f}** |")
        lines.append("")
    return "\n".join(lines)


def _tab(title: str, content: str) -> str:
    """One of several tabs that follow one another; of those with a title, the site remembers which was open last."""
    return f"/// tab | {title}\n\n{content}\n\n///"


def _minimal(kind: str, config: type[BlockConfig]) -> str:
    return (
        f'```yaml title="minimal_{kind}.yaml"\n{minimal_recipe(kind, config)}```\n\n'
        f"```bash\nzoo show minimal_{kind}.yaml      # layers, parameters, FLOPs, cache\n"
        f"zoo train minimal_{kind}.yaml     # on the Python standard library's own source, as bytes\n```"
    )


def _in_python(kind: str, config: type[BlockConfig]) -> str:
    """One block as a torch module, and its call."""
    fields = ", ".join(f"{name}={value!r}" for name, value in config.about.example.items()).replace("'", '"')
    if len(fields) > 60:
        fields = "\n" + textwrap.fill(fields, 80, initial_indent="    ", subsequent_indent="    ") + ",\n"
    part = f', "{config.parts[0]}"' if config.parts else ""
    which = f" The third argument names a part: {' or '.join(f'`{name!r}`' for name in config.parts)}." * bool(part)
    return (
        f"```python\nimport torch\nfrom zoo.blocks import build, config_class\nfrom zoo.blocks.base import Context\n\n"
        f'config = config_class("{kind}")({fields})\n'
        f"block = build(config, {D_MODEL}{part})\n"
        f"y = block(torch.randn(2, 128, {D_MODEL}), Context.for_tokens(2, 128))\n```\n\n"
        f"`block` is a `torch.nn.Module`; it reads and returns `[rows, tokens, d_model]`.{which} One `Context` serves "
        "all layers of a forward pass. It holds the positions of the tokens and, if rows hold several documents, where "
        "each document begins."
    )


def _papers(config: BlockConfig) -> str:
    """The kind's own sources first, then those of its projections and patterns."""
    papers: list[Paper] = [*config.about.papers]
    for part in _parts(config):
        if point := _point(config, part):
            of_pair = [pattern.about for pattern in point.patterns]
            papers += _papers_of([*of_pair, _about_projection(point)])
    if isinstance(config, AttentionConfig):
        papers += _papers_of(part.about for family in (PROJECTIONS, PATTERNS) for _, part in family.classes())
    lines = [f"- {paper.title}, [arXiv {paper.arxiv}]({paper.url})" for paper in dict.fromkeys(papers)]
    return "## Papers\n\n" + "\n".join(lines) if lines else ""


def _about_projection(point: ResolvedAttention) -> texts.About:
    return PROJECTIONS.config_class(point.projection.kind).about


def _papers_of(several: Iterable[texts.About]) -> list[Paper]:
    return [paper for about in several for paper in about.papers]
