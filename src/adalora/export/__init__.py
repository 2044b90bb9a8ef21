"""A trained run in the formats that other programs read, and PEFT's adapters as runs.

``adalora.export.convert.export_run`` writes one format, and
``adalora.export.peft_import.import_adapter`` reads PEFT's. Each format is a class named in the
table of ``adalora.export.formats``. Importing this room is light; torch and the formats' own
libraries come in when something is exported.
"""

from adalora.export.formats import FORMATS, Format, find_format

__all__ = ["FORMATS", "Format", "find_format"]
