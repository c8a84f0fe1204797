"""A run, from settings to a space: files -> features -> stages -> evaluation -> outputs, each step resumable.

* `run`: the stages in order. * `stages`, `dataset`: stages and data as functions. * `features`: frozen parts, cached.
* `outputs`: bundle, report, printed tables. * `bind`: binding without a run.
* `plan`: the cost of a run. * `check`: inspects files. * `doctor`: inspects the machine.
"""
