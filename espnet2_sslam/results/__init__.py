"""From finished runs to records: scores, tables and plots."""
