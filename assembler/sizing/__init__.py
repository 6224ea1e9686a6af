"""How much memory a model takes: weights, keys and values, activations, for each rank."""
