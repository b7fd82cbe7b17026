"""Run folders: what lies in them, which there are, and the weights that a training left there."""
