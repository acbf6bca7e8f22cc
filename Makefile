# `make demo` and `make test` need Python 3.11 or newer and do all their own set-up in .venv.
# PYTHON=/path/to/python3 chooses another Python; ARGS="--set seed=1" goes to the demo or to pytest.

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean venv

help:
	@echo "make demo    train the embedded tiny model (ARGS=\"--set seed=1\")"
	@echo "make test    lint, type check and tests (ARGS=\"-k name\" goes to pytest)"
	@echo "make lint    ruff and pyright only"
	@echo "make format  let ruff rewrite the code"
	@echo "make clean   remove .venv, caches and build outputs; runs/ stays"

venv:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh

demo: venv
	@.venv/bin/simko-mlx train $(ARGS)

test: lint
	.venv/bin/python -m pytest -n auto --maxprocesses 4 $(ARGS)

lint: venv
	.venv/bin/ruff check .
	.venv/bin/pyright

format: venv
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv .venv.previous .venv-torch .venv-torch.lock build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
