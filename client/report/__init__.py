"""The site's own report: the benefit of the federation, the traffic, and the privacy spent."""
