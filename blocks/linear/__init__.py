"""Mixers with a state of fixed size: what their configs and modules share; the kinds are in blocks/kinds/."""
