"""docs/studies/asa_small.md: its tables are those of the outcome files, and the study goes on from these."""

import json
import shutil
from pathlib import Path

import pytest

from zoo.study.config import load_study
from zoo.study.expand import expand
from zoo.study.runner import Runner
from zoo.study.slots import Slots
from zoo.study.state import DONE, StudyFolder, refuse_other_settings

ROOT = Path(__file__).parents[3]
DOCS, RECIPES = ROOT / "docs" / "studies", ROOT / "recipes" / "studies" / "asa_small"
RATES = {"5e-4": "0.0005", "1e-3": "0.001", "2e-3": "0.002", "4e-3": "0.004"}


def losses(folder: str) -> dict[str, str]:
    """Run -> its final validation loss, as the page writes it."""
    files = (DOCS / "asa_small" / folder).glob("*.json")
    return {path.stem: f"{json.loads(path.read_text())['results']['loss']:.3f}" for path in files}


def rows(heading: str) -> dict[str, list[str]]:
    """Learning rate -> cells of a table of the page."""
    table = (DOCS / "asa_small.md").read_text().split(heading)[1].split("\n\n")[0]
    lines = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {name: cells for name, *cells in lines}


def test_the_table_of_the_first_slice_is_that_of_the_outcomes():
    found = rows(
        "| learning rate | `full`, seed 1 | seed 2 | seed 3 | seed 4 | `asa`, seed 1 | seed 2 | seed 3 | seed 4 |"
    )
    shown = {}
    for rate, cells in found.items():
        for place, cell in enumerate(cells):
            if cell:
                shown[f"{('full', 'asa')[place // 4]}-lr={RATES[rate]}-seed{place % 4 + 1}"] = cell
    assert shown == losses("outcomes")


def test_the_table_of_the_whole_study_is_that_of_the_outcomes():
    names = [entry.name for entry in load_study(RECIPES / "study.yaml").config.recipes]
    found = rows(f"| learning rate | {' | '.join(f'`{name}`' for name in names)} |")
    shown = {
        f"{name}-lr={RATES[rate]}-seed1": cell
        for rate, cells in found.items()
        for name, cell in zip(names, cells, strict=True)
        if cell
    }
    assert shown == losses("begun/outcomes")
    assert f"begun anew: {len(shown)} of 72 runs" in (DOCS / "asa_small.md").read_text()


@pytest.mark.parametrize(
    ("file", "folder", "done"), [("study.yaml", "begun/outcomes", 20), ("study_first.yaml", "outcomes", 14)]
)
def test_the_study_goes_on_from_the_outcomes(tmp_path, file, folder, done):
    """A change of the identity of runs would refuse them; hours of training would be lost."""
    shutil.copytree(DOCS / "asa_small" / folder, tmp_path / "outcomes")
    runner = Runner(expand(load_study(RECIPES / file)), StudyFolder(tmp_path), Slots(1), scored=False)
    refuse_other_settings(runner.folder, runner.all())
    assert sum(runner.state(run).name == DONE for run in runner.all()) == done


def test_the_outcomes_of_the_whole_study_have_the_same_rows():
    """Those that the script's text and this version's tokenizer give; study.yaml cannot go on with others."""
    files = (DOCS / "asa_small" / "begun" / "outcomes").glob("*.json")
    assert {json.loads(path.read_text())["results"]["data"] for path in files} == {"63aed7707b581ebf"}


def test_what_the_page_says_of_the_first_slice_is_what_the_report_says(tmp_path):
    from zoo.study.findings import findings

    shutil.copytree(DOCS / "asa_small" / "outcomes", tmp_path / "outcomes")
    runner = Runner(expand(load_study(RECIPES / "study_first.yaml")), StudyFolder(tmp_path), Slots(1), scored=False)
    found = findings(runner)
    full, asa = found["results"]["architectures"]
    apart, faster = asa["difference"], asa["speedup"]
    page = " ".join((DOCS / "asa_small.md").read_text().split())
    for each in (
        f"better than `full` by {-apart['value']:.3f} nats** (95% interval {-apart['holm_high']:.3f} to "
        f"{-apart['holm_low']:.3f}, p = {apart['p_holm']:.3f} after Holm",
        *(
            f"{e['mean_loss']['value']:.3f} ({e['mean_loss']['low']:.3f} to {e['mean_loss']['high']:.3f})"
            for e in (full, asa)
        ),
        f"bits per byte {asa['mean_bits_per_byte']['value']:.3f} against {full['mean_bits_per_byte']['value']:.3f}",
        f"{faster['compute']:.2f} times ({faster['low']:.2f} to {faster['high']:.2f}) the FLOPs",
        f"{found['measured']['architectures']['asa']['speedup_time']:.2f} times the GPU time",
        f"a factor of {full['speedup']['compute']:.2f}",
        f"a standard deviation of {full['mean_loss']['sd']:.3f} over three seeds",
        f"`asa` does not: {asa['mean_loss']['sd']:.3f} (range",
        f"KV cache {asa['cache_held_bytes'] / 2**20:.1f} against {full['cache_held_bytes'] / 2**20:.1f} MiB",
    ):
        assert each in page
