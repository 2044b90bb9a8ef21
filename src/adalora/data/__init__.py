"""The user's own files: read strictly, understood aloud."""
