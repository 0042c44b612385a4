"""A whole deployment on this machine's loopback: processes, proxy, faults."""
