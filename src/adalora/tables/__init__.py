"""Results of many runs as tables: differences with intervals, grids, and their renderings."""
