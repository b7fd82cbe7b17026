"""Data: sources of text, tokenizers, rows packed into MDS shards, and the loader that feeds training."""
