"""Runs the planned Ollamas: starts, watches, restarts and ends their processes."""
