"""The methods that EPT is compared with, one file per method."""
