"""The site's ledger: signed, hash-chained lines, their verification, and what a crash leaves of them."""
