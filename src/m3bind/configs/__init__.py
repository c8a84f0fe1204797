"""The settings files that ship with the package: demo, quick, mini5, paper, paper-literal."""
