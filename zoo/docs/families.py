"""A page for each family of parts except blocks, which have a page each: every kind with its text and fields."""

from typing import Any

from zoo.docs.docstrings import as_markdown
from zoo.docs.fields import fields_page
from zoo.parts import FAMILIES, MIXERS, Family

FOLDER = "reference/parts"
TITLES = {"ffns": "Feed-forwards", "positions": "Position embeddings", "schedules": "Learning-rate schedules"}


def family_pages() -> dict[str, str]:
    """Path -> Markdown of the page of every family but the blocks."""
    return {f"{FOLDER}/{name}.md": _page(family) for name, family in FAMILIES.items() if family is not MIXERS}


def _page(family: Family) -> str:
    title = TITLES.get(family.name, family.name.capitalize())
    intro = (
        f"# {title}\n\n{family.summary} Every kind in the registry, those of installed packages included; "
        f"`zoo parts {family.name}` lists them. Each section is written from the kind's config class."
    )
    return "\n\n".join([intro, *(_section(kind, config) for kind, config in family.classes())]) + "\n"


def _section(kind: str, config: Any) -> str:
    about = config.about
    papers = "\n".join(f"- {paper.title}, [arXiv {paper.arxiv}]({paper.url})" for paper in about.papers)
    fields = fields_page(config).replace("\n### ", "\n#### ")
    parts = [f"## {kind}", as_markdown(config.__doc__ or ""), about.equations.strip(), fields.strip(), papers]
    return "\n\n".join(part for part in parts if part)
