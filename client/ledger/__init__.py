"""The site's ledger: signed, hash-chained lines, their verification, and recovery after a crash."""
