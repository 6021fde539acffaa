"""A reconstruction in the browser: what is shown, in plain numpy, and the server that shows it.

- `layers.py`: the points, cut into chunks that are switched on and off.
- `cameras.py`: cameras as pyramids with their pictures; which way is up, where to look from.
- `controls.py`: the controls beside the scene, and the settings that they change.
- `ports.py`: which port is free.
- `rays.py`: tracks in space.
- `server.py`: `Viewer`, on viser.
- `viewing.py`: `view`.
"""

from vggt_jax.viewer.server import Viewer as Viewer
from vggt_jax.viewer.viewing import view as view
