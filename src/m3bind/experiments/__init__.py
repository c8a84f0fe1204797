"""Experiments of several runs: suites, ablations, comparison of binding methods, the paper's tables.

* `suite`: jobs, each computed once. * `evaluated_model`: a model or a space under evaluation.
* `paper_tables`, `ablation`, `method_comparison` (with `method_metrics`), `lora_finetune`.
* `commands`: called by the command line.
"""
