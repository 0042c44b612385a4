"""A complete deployment on this machine's loopback: processes, proxy, faults."""
