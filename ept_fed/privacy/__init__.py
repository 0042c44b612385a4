"""What leaves a site, seen with an attacker's eyes: pure functions, no files and no network."""
