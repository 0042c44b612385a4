"""Keys, certificates, signing requests, and the layout and checks of a kit (X.509, RFC 5280)."""
