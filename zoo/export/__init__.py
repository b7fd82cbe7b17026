"""What exists, for other libraries: a trained model as a folder of transformers, or its weights alone."""
