"""The methods that EPT is compared with: one file each, named after the method."""
