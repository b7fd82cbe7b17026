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
    from zoo.study.findings import findings
    from zoo.study.page import as_page
    from zoo.study.plots import drawings
    from zoo.study.runner import Runner
    from zoo.study.slots import Slots
    from zoo.study.state import DONE, StudyFolder, refuse_other_settings

    made = {}
    for path, file in STUDIES.items():
        runs, folder = expand(load_study(root / "recipes" / file)), StudyFolder(root / "docs" / path)
        runner = Runner(runs, folder, Slots(1), scored=False)
        refuse_other_settings(folder, runner.all())
        if not all(runner.state(run).name == DONE for run in runner.all()):
            raise ZooError(f"docs/{path}/outcomes: a run of recipes/{file} is missing")
        found = findings(runner)
        page = as_page(found, runs, folder)
        made[f"{path}/report.html"] = page.replace(f"{Path.cwd()}{os.sep}", "")  # paths of the text: no matter where
        for name, svg in _named(drawings(found)).items():
            made[f"{path}/{name}.svg"] = svg
    return made


def _named(drawn: dict[str, list[tuple[str, str]]]) -> dict[str, str]:
    """Name of a drawing, with which its ids begin (zoo.report.drawing.as_svg), such as `decoding` -> SVG.

    Their order is no name, because a drawing is left out if nothing was measured for it.
    """
    return {FIRST_ID.findall(svg)[0]: svg for figures in drawn.values() for _, svg in figures}
