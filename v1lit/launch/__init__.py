"""Job files for clusters, and the same on one machine: every one calls `lightning run`."""
