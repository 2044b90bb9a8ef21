"""Reports to look at: one HTML page on a run or a sweep, and its pictures.

``adalora.results`` reads and summarises; the pictures draw, facts puts numbers into words, page
fills the templates and writes. Drawing needs the extra ``adalora[report]``.
"""

from adalora.report.page import write_report

__all__ = ["write_report"]
