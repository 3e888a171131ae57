"""Changes of the model stores: in turn, once for all who want the same, in every store, and seen at once."""
