"""Reports of a run, for people (HTML, PDF) and for programs (JSON, CSV)."""
