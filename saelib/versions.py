"""Declared versions of what this package computes: they go into the names of finished work.

The text of the code does not.

Raise a version by one where results change, and only there: a renamed variable, a comment or a
faster way to the same numbers leaves it alone. Two tests watch over this: `test_golden`, and
`test_golden_measuring`.

A configuration's field at its default is left out of a run's name (`Checked.to_dict`), so that a
new field changes no old name; a *changed default* is a change of results and raises
`TRAINING_VERSION`.
"""

# The weights a run ends with: losses, steps, optimiser, schedules, resampling, order of the rows.
TRAINING_VERSION = 1
# What `metrics.json` says of given weights: metrics, masks, next-token losses.
MEASURING_VERSION = 1
# The rows a live stream hands out, and their order.
STREAMING_VERSION = 1
# What notebooks make of measured runs: estimates, verdicts, figures, sentences.
STUDY_VERSION = 4
