"""What keeps one site's numbers from everybody else: arithmetic over arrays and bytes, no files, sockets or Flower."""
