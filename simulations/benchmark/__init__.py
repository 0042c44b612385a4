"""`ept-fed benchmark`: a grid of cells, each trained once, and its tables and charts."""
