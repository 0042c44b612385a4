"""Charts as inline SVG and as PNG, without pyplot, global state or external resources."""
