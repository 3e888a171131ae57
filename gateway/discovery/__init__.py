"""Replicas that come and go: found in the DNS or in Kubernetes, while the gateway runs."""
