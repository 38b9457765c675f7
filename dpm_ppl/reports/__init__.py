"""What the command line reports: numbers, words and figures of a fit, an evaluation and a posterior.

An application layer above `dpm_ppl.inference`, whose records it takes. `fit`, `evaluation` and `posterior` make the
numbers, their table and the verdict in words; `fit_figure`, `evaluation_figure` and `posterior_figure` draw them, of
`panels`, which show states, and of `pairs`, `frequencies` and `drift`; `calibration_figure` draws what `calibrate`
finds, and `strips` both chains of an image, the reverse one by its `steps`. `tables` sets runs beside the tables of
2015. `samples` draws from a fitted program and compares with data, `objective` serves programs that are no single
chain, `floor` is what one without structure reaches, `budget` says how many data a report can afford, and `numbers` how
numbers are shown.
"""
