"""Architectures side by side: `zoo compare` as a table, a page and JSON; attention maps for `zoo show --pattern`.

No torch, except in maps.py, measure.py and patterns.py; drawing.py, curves.py and cost_plots.py
import matplotlib. What a page is made of: page.py, with page_tables.py, html.py, origin.py, page.css and page.js.
"""
