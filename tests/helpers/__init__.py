"""What several test modules share: small models and data, short runs, a server with faults."""
