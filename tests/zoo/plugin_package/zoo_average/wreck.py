"""Fails while it is imported, as a plugin may whose own requirements are missing."""

raise RuntimeError("libwreck.so is missing")
