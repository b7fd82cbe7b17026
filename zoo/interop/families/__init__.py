"""One file for each family of published models, named as its `model_type` in transformers."""
