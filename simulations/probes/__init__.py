"""Small experiments that answer one question each; run from a checkout, not part of the wheel."""
