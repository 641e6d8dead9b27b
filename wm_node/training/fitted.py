"""Files of a bundle that are fitted to its dataset, not trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from wm_node.bundle import Bundle
from wm_node.data.dataset import Dataset
from wm_node.planning.ways import FILE as PLACES
from wm_node.planning.ways import save_places
from wm_node.safety.familiarity import FILE as FAMILIAR
from wm_node.safety.familiarity import save_densities
from wm_node.training.familiar import fit_familiarity
from wm_node.training.floors import FILE as FLOORS
from wm_node.training.places import fit_places


def fitted_files(dataset: Dataset) -> dict[str, Callable[[Path], None]]:
    """Fit which frames are familiar and, if the data tell, where the pushed object may be.

    Returns:
        File name in the bundle -> what writes it to a path.

    Raises:
        WmError: a camera gave no frames.
    """
    files: dict[str, Callable[[Path], None]] = {
        FAMILIAR: partial(save_densities, fit_familiarity(dataset))
    }
    places = fit_places(dataset)
    if places is not None:
        files[PLACES] = partial(save_places, places)
    return files


def carried_files(bundle: Bundle) -> dict[str, Callable[[Path], None]]:
    """Return what copies such files of a bundle, and its floors, in the form of the above."""

    def copy(source: Path, to: Path) -> None:
        shutil.copyfile(source, to)

    found = {name: bundle.optional_file(name) for name in (FAMILIAR, PLACES, FLOORS)}
    return {name: partial(copy, file) for name, file in found.items() if file is not None}
