# The commands of this project. `make demo` and `make test` set everything up themselves, also on a fresh machine.
PYTHON := .venv/bin/python

.PHONY: demo test test-long test-containers check benchmarks docs clean setup servers
.NOTPARALLEL:
# Tests and benchmarks start hundreds of processes, each of which would compile all of fledge anew.
unexport PYTHONDONTWRITEBYTECODE

demo: setup
	@.venv/bin/fledge demo

# Everything a change has to pass; a few minutes.
test: servers check
	$(PYTHON) -m pytest -q -n 3 --dist loadfile

# Kills, seeds and mutants by the thousand; up to an hour or more.
test-long: servers
	$(PYTHON) -m pytest -q -m long
	$(PYTHON) -m tests.integration
	$(PYTHON) -m tests.unit

# The images and compose files on a real engine; a quarter of an hour. What it needs: docs/containers.md.
test-containers: setup
	$(PYTHON) -m pytest -q -m containers tests/containers

# Formatting, lint, types and the house rules; seconds.
check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTHON) -m pytest -q tests/unit/test_house.py tests/unit/test_suite_house.py tests/unit/test_docs.py

# Tables on the screen, JSON in out/.
benchmarks: setup
	$(PYTHON) -m benchmarks.convergence
	$(PYTHON) -m benchmarks.pipeline
	$(PYTHON) -m benchmarks.pipeline --overhead --json out/overhead.json
	$(PYTHON) -m benchmarks.stages --json out/stages.json
	$(PYTHON) -m benchmarks.stages --store s3 --json out/stages_s3.json
	$(PYTHON) -m benchmarks.bundle_memory --json out/bundle_memory.json

# The documentation as a site in out/site, and the picture in it; dead links fail.
docs: setup
	$(PYTHON) docs/architecture_svg.py
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet

clean:
	rm -rf .venv .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist out *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@scripts/setup.sh

servers:
	@scripts/setup.sh servers
