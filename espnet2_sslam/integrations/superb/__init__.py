"""SUPERB-style evaluation: s3prl's own commands, a learning-rate sweep, a table."""
