"""The data sets by name: a line each."""

from pathlib import Path
from typing import Any

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import DataSet
from vggt_jax.evaluation.datasets.co3d import CO3D
from vggt_jax.evaluation.datasets.dtu import DTU
from vggt_jax.evaluation.datasets.eth3d import ETH3D
from vggt_jax.evaluation.datasets.nrgbd import NRGBD
from vggt_jax.evaluation.datasets.realestate10k import RealEstate10K
from vggt_jax.evaluation.datasets.scannet import ScanNet
from vggt_jax.evaluation.datasets.seven_scenes import SevenScenes
from vggt_jax.evaluation.datasets.tanks_and_temples import TanksAndTemples

DATASETS: dict[str, type[DataSet]] = {
    kind.name: kind
    for kind in (RealEstate10K, CO3D, TanksAndTemples, ETH3D, SevenScenes, NRGBD, DTU, ScanNet)
}


def open_dataset(name: str, root: str | Path, **options: Any) -> DataSet:
    """Opens a data set in a folder; which layout it has there, its files tell.

    Args:
        name: "re10k", "co3d", "tanks", "eth3d", "7scenes", "nrgbd", "dtu" or "scannet".
        root: the folder that its scenes, categories or clips are in; of most also one scene.
        options: those of the data set's class.

    Raises:
        InputError: there is no such data set, the folder holds it in no layout that is read, or an
            option is not one of the data set.
    """
    if name not in DATASETS:
        raise InputError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    try:
        return DATASETS[name].open(root, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise InputError(f"{name}: {str(error).partition(') ')[2] or error}") from error
