"""The drawings and the report page of the study in docs/studies, which the site makes anew."""

import re
import shutil
from pathlib import Path

import pytest

from zoo.docs.study_pages import study_pages
from zoo.errors import ZooError

ROOT = Path(__file__).parents[3]


def test_what_the_page_shows_and_links_to_is_made():
    made = study_pages(ROOT)
    page = (ROOT / "docs" / "studies" / "asa_small.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\((asa_small/[^)#]+)\)", page))
    assert len(named) == 6
    assert {f"studies/{name}" for name in named} <= set(made)
    assert all(text.startswith("<svg") for name, text in made.items() if name.endswith(".svg"))
    report = made["studies/asa_small/report.html"]
    captions = {
        svg: re.search(r"<figcaption[^>]*>(.*?)</figcaption>", report[report.index(made[f"studies/{svg}"]) :])[1]
        for svg in named
        if svg.endswith(".svg")
    }
    assert {name.removeprefix("asa_small/"): re.split("[;(]", caption)[0] for name, caption in captions.items()} == {
        "final.svg": "Mean and 95% interval",
        "tokens.svg": "Against tokens",
        "cache.svg": "Against the KV cache of one row of 2,048 tokens, bf16",
        "decoding.svg": "Against decoding speed",
        "score3.svg": "common_sense_bits",
    }
    assert report.count("<figure>") == len(made) - 1
    assert "better than full by 0.2422" in report
    assert "paths: corpus" in report  # no path of the machine that makes the site
    assert str(Path.cwd()) not in report


def test_a_run_that_is_missing_is_named(tmp_path):
    outcomes = Path("docs/studies/asa_small/outcomes")
    shutil.copytree(ROOT / outcomes, tmp_path / outcomes)
    shutil.copytree(ROOT / "recipes" / "studies", tmp_path / "recipes" / "studies")
    (tmp_path / outcomes / "asa-lr=0.001-seed3.json").unlink()
    with pytest.raises(ZooError, match=r"docs/studies/asa_small/outcomes: a run of .*study.yaml is missing"):
        study_pages(tmp_path)
