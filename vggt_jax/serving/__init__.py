"""A resident server: a model that stays loaded, for programs (`vggt-jax serve`) and for people
(`vggt-jax app`).

- `jobs.py`: one queue of jobs, a thread that does them one after another, results by job.
- `runner.py`: how a job is done: models kept in memory, photographs to a reconstruction.
- `api.py`: the queue over HTTP.
- `guard.py`: what comes before the API: a password, and a limit to what is sent.
- `page.py`: the web page.
- `client.py`: `vggt-jax infer --server`.
"""

from vggt_jax.serving.jobs import JobOptions as JobOptions
from vggt_jax.serving.jobs import Limits as Limits
from vggt_jax.serving.jobs import Queue as Queue
from vggt_jax.serving.runner import ModelRunner as ModelRunner
