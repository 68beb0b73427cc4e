"""Writes docs/settings.md anew from the docstrings: python docs/settings.py."""

from __future__ import annotations

from pathlib import Path

from recgrit.settings import describe_settings

if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(describe_settings(), encoding="utf-8")
