"""Hits of a search in recordings, as files for other programs and as a page to hear and see them."""
