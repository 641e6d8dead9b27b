"""Finds the files that ship beside the code: ``config/``, ``launch/``, ``bundles/``.

They lie in the source tree of a checkout (also with ``pip install -e``) and in
``<prefix>/share/wm_node`` of an installation by pip or colcon.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from wm_node.errors import WmError

_PACKAGE = "wm_node"
BUNDLE = "bundles/tabletop"
"""The bundle that ships: labels of the simulator shaped its encoder and rollout."""
LABEL_FREE_BUNDLE = "bundles/tabletop_label_free"
"""Its sibling: encoder and rollout learnt from video, joints and actions alone."""
HAZARDS_BUNDLE = "bundles/tabletop_hazards"
"""Of the same table with other things on it, a person who reaches across, and other looks."""


def _candidates() -> list[Path]:
    source = Path(__file__).resolve().parent.parent
    roots = [source] if (source / "package.xml").is_file() else []
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix:
            roots.append(Path(prefix) / "share" / _PACKAGE)
    roots.append(Path(sysconfig.get_path("data")) / "share" / _PACKAGE)
    return roots


def resource(relative: str) -> Path:
    """Return the path of a shipped file or folder, such as ``config/robots/tabletop.yaml``.

    Raises:
        WmError: nothing of that name ships with this installation.
    """
    for root in _candidates():
        path = root / relative
        if path.exists():
            return path
    looked = ", ".join(str(root) for root in _candidates())
    raise WmError(f"'{relative}' is not part of this installation of wm_node (looked in {looked}).")
