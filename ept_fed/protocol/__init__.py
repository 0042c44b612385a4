"""Messages between server and site: layouts, requests and replies, as numpy arrays and plain values."""
