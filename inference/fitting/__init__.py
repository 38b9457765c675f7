"""Fitting: stock SVI on the bound K, in compiled chunks, with checkpoints between them.

`fits.fit` is where to start. It checks its options, draws `batches` from the data, has `prepare` run the program once
and make it ready for stock SVI, and lets `loop` do the iterations, which `runs` keeps on disk and reads back.
"""

from dpm_ppl.inference.fitting.fits import Fit as Fit
from dpm_ppl.inference.fitting.fits import fit as fit
from dpm_ppl.inference.fitting.loop import NonFiniteLossError as NonFiniteLossError
from dpm_ppl.inference.fitting.runs import load_params as load_params
from dpm_ppl.inference.fitting.runs import read_run as read_run
