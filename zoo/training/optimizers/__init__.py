"""The optimisers: each kind's config (no torch) and the function that makes it. zoo/parts.py holds their names."""
