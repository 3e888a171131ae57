"""Batches of texts to embed: in parts over the replicas that have the model, their answers joined in order."""

from corral.gateway.embed.splitter import Splitter

__all__ = ["Splitter"]
