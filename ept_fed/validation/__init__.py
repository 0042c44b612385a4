"""What settings, data and kits must not be: every problem at once, each with its field, value and fix."""
