"""Reports for people: one page per site and one for the federation, as HTML and PDF."""
