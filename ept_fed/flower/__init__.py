"""Protocol values as Flower messages, and back: the only folder of the library that imports flwr."""
