"""Fixtures of stage two."""

from stage_two import extracted, folder, two_views

__all__ = ["extracted", "folder", "two_views"]
