"""The policies: each decides which replica gets a request, from what is known of both. One policy a file."""

from corral.policies.catalogue import POLICIES, make_policy
from corral.policies.pick import cold, lowest, weighted

__all__ = ["POLICIES", "cold", "lowest", "make_policy", "weighted"]
