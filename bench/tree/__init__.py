"""A Corral above Corrals, against one Corral over the same GPUs."""
