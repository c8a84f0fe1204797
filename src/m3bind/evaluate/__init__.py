"""Evaluation of a space: zero-shot, few-shot, retrieval, text agreement and calibration.

Everything works on plain arrays, so the same code measures the unbound models, the closed form, and each trained stage.

    classification.py  ranking.py  confidence.py    metrics with n, chance and bootstrap interval
    results.py  pivot.py  compare.py    one row per metric in results.json; tables of stages; paired differences
    prompt_files.py  tasks.py    zero-shot tasks and shared concepts, data in prompts/*.yaml
    own_prompts.py    a user's own prompt file: its classes, its check against a manifest
    zero_shot.py  retrieval.py  cross_modal.py  agreement.py  calibration.py    arrays -> rows (scoring.py)
    few_shot.py  adapters/    sampled lists of training files, and one file per few-shot method
    leaks.py      leaks between splits, pairs of files with the same content, data that a model was trained on
    near_duplicates.py  files that show the same after compression, resizing, a crop or a flip
    benchmarks/   one file per published data set; datasets.py: a prepared one
    stage_results.py      all metrics of one state of the space
    tables.py  jobs.py  protocols.py    the paper's tables as data, and how a cell of them is computed
"""
