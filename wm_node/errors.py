"""The one exception that a user is meant to read."""

from __future__ import annotations


class WmError(Exception):
    """A fault of input, configuration or environment, told in one sentence that says what to do.

    The command line prints it without a traceback and exits with status 1; lifecycle nodes log it
    and fail the transition. Anything else that escapes is a bug and keeps its traceback.
    """
