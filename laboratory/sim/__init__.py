"""`corral policy sim`: what a policy would do to this box and these requests, before it is live."""
