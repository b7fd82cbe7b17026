"""The feed-forward networks: each kind's config (no torch) and the module that runs.

`registry.FEED_FORWARDS` of zoo/parts.py holds their names.
"""
