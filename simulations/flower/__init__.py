"""Virtual sites under Flower's own engines (`flwr run .`)."""
