"""Files that are whole or absent, locked, and never pickled; knows no model."""
