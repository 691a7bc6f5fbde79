"""What several test modules share: small data, short runs, a server with faults. Models: `v1lit.testing`."""
