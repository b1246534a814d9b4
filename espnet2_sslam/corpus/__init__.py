"""Data directories, audio formatting and the data report (recipe stages 1 to 3)."""
