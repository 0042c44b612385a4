"""The one way of a request through a site, whatever carries it: decode, gate, site, gate, encode."""
