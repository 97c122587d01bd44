"""Declared versions of what this package computes: they, not the text of the code, go into the names of finished work.

Raise a version by one where results change, and only there: a renamed variable, a comment or a faster way to the same
numbers leaves it alone. Two tests watch over this: `test_golden`, and `test_golden_measuring`.

A configuration's field at its default is left out of a run's name (`Checked.to_dict`), so that a new field changes no
old name; a *changed default* is a change of results and raises `TRAINING_VERSION`.
"""

TRAINING_VERSION = 1  # the weights a run ends with: losses, steps, optimiser, schedules, resampling, order of the rows
MEASURING_VERSION = (
    1  # what `metrics.json` says of given weights: metrics, masks, next-token losses
)
STREAMING_VERSION = 1  # the rows a live stream hands out, and their order
STUDY_VERSION = 1  # what notebooks make of measured runs: estimates, verdicts, figures, sentences
