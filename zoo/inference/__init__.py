"""Generation: the cache of a model, sampling, and the loop that joins them."""
