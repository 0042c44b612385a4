"""Which site and which split each image belongs to, and which images of it are used: pure functions over records."""
