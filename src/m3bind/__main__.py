"""`python -m m3bind` is the command line.

Python itself looks into the current folder for m3bind, and for the few modules that it needs until it has found it;
after that nothing is imported from there (see `m3bind.__init__`). In a folder that is not yours to trust, use the
command `m3bind` or `python -P -m m3bind`, which do not look there at all.
"""

from m3bind.cli import main

main()
