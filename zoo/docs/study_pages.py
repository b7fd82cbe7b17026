"""The drawings and the report page of a study whose outcomes lie in docs/studies, made when the site is built."""

import os
import re
from pathlib import Path

from zoo.errors import ZooError

STUDIES = {"studies/asa_small": "studies/asa_small/study.yaml"}  # folder below docs/ -> study file below recipes/
FIRST_ID = re.compile(r'\bid="(\w+?)-')


def study_pages(root: Path) -> dict[str, str]:
    """Path below docs/ -> report.html of each study, and its drawings: studies/NAME/DRAWING.svg.

    Raises ZooError if outcomes are damaged, or of another study than the file describes.
    """
    from zoo.study.config import load_study
    from zoo.study.expand import expand
    from zoo.study.page import as_page
    from zoo.study.plots import drawings
    from zoo.study.report import read_findings
    from zoo.study.state import DONE, StudyFolder

    made = {}
    for path, file in STUDIES.items():
        runs, folder = expand(load_study(root / "recipes" / file)), StudyFolder(root / "docs" / path)
        found = read_findings(runs, folder)
        every = [run for each in found["results"]["architectures"] for run in each["choosing_runs"] + each["runs"]]
        if not all(run["state"] == DONE for run in every):
            raise ZooError(f"docs/{path}/outcomes: a run of recipes/{file} is missing")
        page = as_page(found, runs, folder)  # with paths of the text, in the folder of the build
        made[f"{path}/report.html"] = page.replace(f"{Path.cwd()}{os.sep}", "")
        for name, svg in _named(drawings(found)).items():
            made[f"{path}/{name}.svg"] = svg
    return made


def _named(drawn: dict[str, list[tuple[str, str]]]) -> dict[str, str]:
    """Name of a drawing, with which its ids begin (zoo.report.drawing.as_svg), such as `decoding` -> SVG.

    Their order is no name, because a drawing is left out if nothing was measured for it.
    """
    return {FIRST_ID.findall(svg)[0]: svg for figures in drawn.values() for _, svg in figures}
