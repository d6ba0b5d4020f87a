# SPDX-License-Identifier: Apache-2.0
"""Fields of config.prior besides an optimiser's, for every problem with data.

"clusters" makes conditions of what the model sees: `ctrl_jax.self_guided`.
The last four say of which examples it learns: see `ctrl_jax.coresets`, and
`experiments.prune`, which compares them.
"""

PRIOR = {
  "ema_decay": 0.998,  # of the averaged weights that are sampled from
  "dir": "",  # where its checkpoints are, for several runs; "": the workdir
  "clusters": 0,  # values of c, found while it learns; 0: c is as it is given
  "fraction": 1.0,  # of the examples of each class that it is trained on
  "select": "stratified",  # which of them: random, density or stratified
  "reweigh": False,  # classes c, by group DRO; takes as many updates again
  "held_out": 0.0,  # share that it never sees, for samples to be judged by
}
