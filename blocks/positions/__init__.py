"""Position embeddings: a config and the class that makes its tables of cos and sin, one or two files for each kind."""
