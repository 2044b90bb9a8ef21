"""Results of many runs as tables: sources, rows, scores, differences, and their renderings.

``adalora.tables.columns`` says what is shown of a task; ``sources`` reads sweeps and runs; ``rows``
decides what is averaged with what; ``scores`` and ``differences`` work the figures out; ``grids``
words them; ``render`` and ``records`` write them. ``paper.yaml`` holds the paper's own figures.
"""
