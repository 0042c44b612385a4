"""Catalogues of the available methods and strategies, with their papers, options and limits."""
