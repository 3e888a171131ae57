"""The layout of replicas over GPUs."""
