"""Corral: one Ollama endpoint for all the GPUs you own."""

__version__ = "0.1.0"
