"""Finished runs as tables: grids of text, the paper's rows, two runs compared, and renderings."""
