"""The site's long-lived process: it answers frames on a Unix socket, behind the gate."""
