"""``corral top``: what a running gateway does, in a terminal."""
