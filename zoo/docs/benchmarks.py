"""The list of the benchmark tables in docs/benchmarks, each written by `zoo bench` from one measured run."""

import re
from pathlib import Path

PATH = "reference/benchmarks.md"


def benchmarks_page(docs: Path) -> str:
    """Markdown of the page: each table by its heading, with the line that says what was measured on."""
    parts = [
        "# Benchmarks",
        "Measured, each in one run on the machine it names, and kept as it was written. The numbers behind each page "
        "lie in the same folder as JSON. [The log](../log.md) has the experiments around them, those that failed too.",
    ]
    for path in sorted((docs / "benchmarks").glob("*.md")):
        title, about = _head(path)
        data = path.with_suffix(".json")
        json_link = f" ([JSON](../benchmarks/{data.name}))" if data.is_file() else ""
        parts.append(f"## [{title}](../benchmarks/{path.name})\n\n{about}{json_link}")
    return "\n\n".join(parts) + "\n"


def _head(path: Path) -> tuple[str, str]:
    """The heading of a page, and its first paragraph, whose links to files in its folder lead there from PATH."""
    title, _, rest = path.read_text(encoding="utf-8").partition("\n")
    about = rest.strip().split("\n\n")[0]
    return title.lstrip("# "), re.sub(r"\]\((?!\w+:|#|/)", "](../benchmarks/", about)
