"""Files and folders that appear whole or not at all, and are ours before they are replaced."""

from vggt_jax.files.claims import Claim as Claim
from vggt_jax.files.claims import remove_leftovers as remove_leftovers
from vggt_jax.files.documents import read_json as read_json
from vggt_jax.files.folders import check_output_folder as check_output_folder
from vggt_jax.files.folders import output_folder as output_folder
from vggt_jax.files.names import OVERVIEW as OVERVIEW
from vggt_jax.files.names import RESULTS as RESULTS
from vggt_jax.files.names import check_not_input as check_not_input
from vggt_jax.files.names import checked_path as checked_path
from vggt_jax.files.names import file_stems as file_stems
from vggt_jax.files.names import stand_in as stand_in
from vggt_jax.files.whole import check_file as check_file
from vggt_jax.files.whole import replacing as replacing
