"""Fixtures of the commands: features and runs of stage two, pages, and a browser."""

from browser import browser
from report_pages import pages
from stage_two import extracted, folder, two_views

__all__ = ["browser", "extracted", "folder", "pages", "two_views"]
