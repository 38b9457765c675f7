"""Fitting: stock SVI on the bound K, compiled, in chunks with checkpoints between them.

`fits.fit` is where to start. It checks its options, draws `batches` from the data or has `reading` read them, has
`prepare` run the program once and make it ready for stock SVI, and lets `loop` do the iterations, which `runs` keeps on
disk and reads back; several at once are `starts`. Between chunks `watch` looks at the fit: `validation`, and lines of
`metrics`. `optimiser` makes the steps, `shards` splits parameters over devices, and `processes` keeps several processes
together.
"""

from dpm_ppl.inference.fitting.fits import Fit, fit
from dpm_ppl.inference.fitting.loop import NonFiniteLossError
from dpm_ppl.inference.fitting.runs import load_params, read_run

__all__ = [
    "Fit",
    "NonFiniteLossError",
    "fit",
    "load_params",
    "read_run",
]
