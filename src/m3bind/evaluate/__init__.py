"""What the space is worth: zero-shot, search, agreement of text towers, linear probe, and the report about them.

Everything works on plain arrays, so the same code measures the unbound models, the closed form, and each trained stage.

    metrics.py    figures with n, chance and bootstrap interval
    results.py    one row per figure; results.json; before and after
    tasks.py      zero-shot tasks and shared concepts, data in prompts/*.yaml
    zero_shot.py  retrieval.py  agreement.py  probe.py    arrays -> rows
    suite.py      all of it for one state of the space
    report.py  plots.py  gallery.py    rows, log and embeddings -> report.html
"""
