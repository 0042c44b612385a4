"""The software that a hospital runs: it holds the images and the backbone, and answers the server's messages."""
