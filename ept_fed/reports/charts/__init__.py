"""Charts as inline SVG and as PNG: no pyplot, no global state, nothing loaded from outside."""
