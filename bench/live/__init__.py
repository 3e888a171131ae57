"""The laboratory's comparison for real: emulators in real time, and proxies in front of them, over HTTP."""
