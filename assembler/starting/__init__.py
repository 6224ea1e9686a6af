"""The folder in which somebody begins an architecture of their own."""
