"""Sweeps: many runs from one file, in many processes, resumed after any interruption."""

from __future__ import annotations
