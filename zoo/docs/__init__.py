"""The documentation site: `zoo docs build` and `zoo docs serve`.

Hand-written pages lie in docs/. The reference is written here from the code, as Markdown: a page for each block kind
(kinds.py), for each recipe (recipes.py), for the commands (commands_page.py), for Python (python_page.py), and a list
of the benchmark tables (benchmarks.py); pages.py gathers them. None of these needs MkDocs. hooks.py hands them to it,
and site.py runs it.
"""
