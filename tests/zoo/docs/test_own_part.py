"""The files that docs/own_part.md shows are the files of the repository."""

import re
from pathlib import Path

from zoo.parts import FAMILIES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "own_part.md").read_text(encoding="utf-8")


def test_the_page_shows_the_files_as_they_are():
    shown = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
    assert len(shown) == 3
    for path, text in shown.items():
        assert text == (ROOT / path).read_text(encoding="utf-8"), path


def test_the_page_lists_every_family_with_its_base_class():
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", PAGE, re.MULTILINE))
    assert rows == {name: family.base.replace(":", ".") for name, family in FAMILIES.items()}
