"""What the space is worth: zero-shot, few-shot, search, agreement of texts, calibration, and the report about them.

Everything works on plain arrays, so the same code measures the unbound models, the closed form, and each trained stage.

    metrics.py    figures with n, chance and bootstrap interval (estimate.py, classification.py, ranking.py)
    results.py    one row per figure; results.json; before and after
    prompt_files.py  tasks.py    zero-shot tasks and shared concepts, data in prompts/*.yaml
    zero_shot.py  retrieval.py  cross_modal.py  agreement.py  calibration.py    arrays -> rows (scoring.py)
    few_shot.py  adapters/    drawn lists of files, and one file per way to learn from them
    benchmarks/   one file per published data set
    suite.py      all of it for one state of the space
    report.py  plots.py  gallery.py    rows, log and embeddings -> report.html
"""
