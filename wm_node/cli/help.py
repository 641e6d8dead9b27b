"""How ``wm COMMAND --help`` is laid out."""

from __future__ import annotations

import argparse


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, where there is one to tell and the option's own words do not."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        nothing = default is None or default is False or default in ("", [])
        if nothing or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)
