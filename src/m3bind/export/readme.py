"""README of an exported student.

* `student_readme`: the page, with runnable code.
"""

from typing import Any

import yaml

_PAGE = """\
---
{front}---

# Text encoder of a bound space

The student of a space of {dim} dimensions: texts as unit vectors that are comparable, by cosine, with each other and
with the space's images ({modalities}).{synthetic}

Needs {library} only. Replace `FOLDER` by the path of this folder.

```python
{imports}

texts = ["no pleural effusion", "atrial fibrillation"]
{code}
```

Texts longer than {max_tokens} tokens are truncated. The vectors equal those of the space `{space}` to within rounding.

Licences of the parts: {licences}

Not a medical device; not for diagnosis. `export.json` lists the SHA-256 of every file.
"""


def student_readme(library: str, imports: str, code: str, facts: dict[str, Any]) -> str:
    """The page as Markdown with YAML front matter."""
    front = {"library_name": library, "pipeline_tag": "sentence-similarity", "tags": ["m3bind", "medical"]}
    licences = "; ".join(f"{name}: {licence}" for name, licence in facts["licences"].items())
    return _PAGE.format(
        front=yaml.safe_dump(front, sort_keys=False),
        dim=facts["dim"],
        modalities=", ".join(facts["modalities"]),
        synthetic=" Trained on SYNTHETIC data." if facts["synthetic"] else "",
        library=library,
        imports=imports,
        code=code,
        max_tokens=facts["max_tokens"],
        space=facts["space"][:16],
        licences=licences,
    )
