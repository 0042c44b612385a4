"""What leaves a site as an attacker sees it, and what keeps it from everybody else: arithmetic, no files, no Flower."""
