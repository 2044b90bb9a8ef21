"""A pretrained encoder loaded from the hub, a folder or the package, and made fast."""
