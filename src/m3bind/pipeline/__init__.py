"""A run, from settings to a space: files -> features -> stages -> evaluation -> outputs, each step resumable.

* `run`: the stages in order. * `features`: frozen parts, once. * `outputs`: bundle, report, printed tables.
* `plan`, `cost`: what a run will take. * `check`: what files are. * `doctor`: what the machine offers.
"""
