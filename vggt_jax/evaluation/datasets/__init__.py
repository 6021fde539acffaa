"""Data sets for evaluation: from the files of each to the same records. A file is one data set."""

from vggt_jax.evaluation.datasets.base import About as About
from vggt_jax.evaluation.datasets.base import CropVolume as CropVolume
from vggt_jax.evaluation.datasets.base import DataSet as DataSet
from vggt_jax.evaluation.datasets.base import Frame as Frame
from vggt_jax.evaluation.datasets.base import Layout as Layout
from vggt_jax.evaluation.datasets.base import ObservedVolume as ObservedVolume
from vggt_jax.evaluation.datasets.base import Problems as Problems
from vggt_jax.evaluation.datasets.base import Scan as Scan
from vggt_jax.evaluation.datasets.base import Sequence as Sequence
from vggt_jax.evaluation.datasets.base import SequenceCheck as SequenceCheck
from vggt_jax.evaluation.datasets.checking import unproject as unproject
from vggt_jax.evaluation.datasets.registry import DATASETS as DATASETS
from vggt_jax.evaluation.datasets.registry import open_dataset as open_dataset
