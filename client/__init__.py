"""What a hospital runs: its images, its copy of the backbone, and the messages it answers."""
