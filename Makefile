# Everything needs only Python 3.11+ and make: the first call makes .venv and installs the package into it, with the
# versions of requirements/locked.txt. LOCK= (empty) takes the newest that there are.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements/locked.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo demo-quick demo-real serve-demo test test-whole test-published test-real test-slow test-newest test-lowest lock fuzz check bench gpu
.PHONY: reference docs site newcomer clean

help:
	@echo "make demo       virtual patients -> five dual encoders -> bound space -> report (about 5 minutes, 2 cores)"
	@echo "make demo-quick the same on a small cohort (about 1 minute)"
	@echo "make demo-real  the same on five open real data sets: download (14 GB), fit, report, tables (DOWNLOAD=--accept-licences)"
	@echo "make serve-demo a search page on virtual patients (about 2 minutes the first time, then seconds)"
	@echo "make test       the default test suite"
	@echo "make test-whole  whole runs, notebooks, the page in a browser, a real DICOM archive"
	@echo "make test-published  published models in full size against their authors' figures"
	@echo "make test-real  those of the default suite that read real files (../shared/data or M3BIND_TEST_DATA)"
	@echo "make test-slow  all tests, the slow ones as well"
	@echo "make test-newest  the default suite with the newest packages, in .venv-newest; test-lowest: with the lowest"
	@echo "make lock       the versions in requirements/ again: the newest, and the lowest that pyproject.toml allows"
	@echo "make fuzz       20,000 mutated files of eight formats"
	@echo "make check      ruff, mypy, floors (which package imports which)"
	@echo "make bench      the benchmarks: each prints a ratio and its conditions (merged_ranks.py wants a space, gpu.py a GPU)"
	@echo "make gpu        tests and speed of one GPU, at most 8 minutes, into runs/gpu"
	@echo "make reference  embeddings that m3bind check-model compares with, anew for every published model"
	@echo "make docs       what of docs/ is generated: tables of models and data sets, reference, picture"
	@echo "make site       the docs site in site/; a broken link fails"
	@echo "make newcomer   follow the quick start and two how-to pages in a fresh environment (about 10 minutes, 7 GB of disk)"

$(STAMP): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(addprefix -c ,$(LOCK)) -e ".[compact,dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/m3bind demo

# Downloads 14 GB of open data (of which 12 are histology), after a question about their licences; resumable.
demo-real: $(STAMP)
	$(BIN)/m3bind prepare open5 --download --limit 4000 $(DOWNLOAD)
	$(BIN)/m3bind fit open5
	$(BIN)/m3bind evaluate --suite open5

demo-quick: $(STAMP)
	$(BIN)/m3bind demo --quick

serve-demo: $(STAMP)
	$(BIN)/m3bind serve-demo

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile

test-whole: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile -m "whole and not slow"

test-published: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile -m "published and not slow"

test-real: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile -m "real and not slow and not published and not whole"

test-slow: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile -m "slow or not slow" --timeout 3600

# Each in a new environment: 6 GB of disk, removed by make clean.
test-newest:
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest LOCK=

test-lowest:
	rm -rf .venv-lowest
	$(MAKE) test VENV=.venv-lowest LOCK=requirements/lowest.txt

# One version of each package for all Pythons and platforms; what only some of them need carries a marker. No hashes: an
# editable package cannot have one. LIMITS=FILE: further constraints, such as those this machine sets for pip.
COMPILE = .venv-lock/bin/uv pip compile pyproject.toml --extra compact --extra dev --python-version 3.11 --upgrade \
  --quiet --no-annotate --custom-compile-command "make lock" $(addprefix -c ,$(LIMITS))

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check uv
	$(COMPILE) --universal --fork-strategy fewest -o requirements/locked.txt
	$(COMPILE) --resolution lowest-direct -o requirements/lowest.txt

fuzz: $(STAMP)
	M3BIND_FUZZ=20000 $(BIN)/pytest -n 2 --timeout 3600 -s tests/modalities/test_fuzz.py

check: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

gpu: $(STAMP)
	PYTHON=$(BIN)/python bash benchmarks/gpu.sh

bench: $(STAMP)
	for script in $(filter-out benchmarks/merged_ranks.py benchmarks/gpu.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

reference: $(STAMP)
	for name in $$($(BIN)/python -c "from m3bind.models.weights.check import published; print(*published())"); do \
	  echo "== $$name"; $(BIN)/m3bind check-model $$name --save-reference || exit 1; done

docs: $(STAMP)
	$(BIN)/m3bind models --markdown docs/models.md
	$(BIN)/m3bind datasets --markdown docs/experiments.md
	$(BIN)/python tools/make_reference.py
	$(BIN)/python tools/make_picture.py

site: $(STAMP)
	$(BIN)/zensical build --strict --clean
	$(BIN)/python tools/check_site.py site

newcomer: $(STAMP)
	$(BIN)/python tests/newcomer.py

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest .venv-lock runs site .cache
