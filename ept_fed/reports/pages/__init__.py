"""Pages for people: the report of a site and of the federation, as HTML and PDF."""
