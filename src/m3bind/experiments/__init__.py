"""Many runs and many tables: suites, ablations, binding methods side by side, the paper's tables.

* `suite`: jobs, each computed once. * `evaluated_model`: a model or a space under measurement.
* `paper_tables`, `ablation`, `method_comparison`, `lora_finetune`. * `commands`: what the command line calls.
"""
