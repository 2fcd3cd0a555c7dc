"""The reason for which a clip's audio is not used."""

from __future__ import annotations

TRUNCATED_BY_S = 0.1
"""So much sound may be missing: headers are off by a few frames in files that are whole."""


class UnusableAudio(Exception):
    """A clip's audio cannot be used; `reason` is one of `catalogs.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
