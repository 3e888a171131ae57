"""Decides which Ollamas to run on which GPUs, and with what; pure but for the files that gather the facts."""
