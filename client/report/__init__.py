"""The site's own report: did joining help, what was sent and received, what privacy was spent."""
