"""Sweeps: many runs of one recipe that differ in a few keys, each a `lightning run` of its own."""
