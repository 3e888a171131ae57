"""Benchmarks of Corral; nothing in the package needs them."""
