"""The deciding core of the gateway: a queue, leases and health, without I/O and without a clock."""
