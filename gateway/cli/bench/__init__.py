"""``corral bench``: how fast an address answers, beside one Ollama asked directly."""
