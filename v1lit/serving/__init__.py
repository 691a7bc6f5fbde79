"""Answer many people at once: a running batch, and a server before it."""
