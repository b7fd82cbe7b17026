"""What a recipe costs, counted and not measured: parameters, FLOPs, caches, memory and time of a training. No torch."""
