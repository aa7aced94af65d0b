# make demo: Dr.GRPO and RIL side by side on the tiny world.  make test: all tests.  Both work on a fresh machine with Python >= 3.10.
PYTHON ?= python3
RUN = OMP_NUM_THREADS=2 .venv/bin/python

.PHONY: demo test students teachers bench lint clean

demo: .venv/ready
	.venv/bin/python -m results.demo

test: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --durations=5

students: .venv/ready  # trains the shipped warm starts from nothing (20 minutes, one core)
	for seed in 0 1 2 3 4; do \
	  $(RUN) -m tools.build student --no-resume --name build-$$seed --seed $$seed || exit 1; done
	$(RUN) -m tools.build student --no-resume --name build-internvl --student tiny-internvl

teachers: .venv/ready  # trains both tiny teachers and rebuilds their committed responses from nothing (12 minutes, one core)
	$(RUN) -m tools.build teacher --no-resume --name build-a --sft-steps 1000
	$(RUN) -m tools.build teacher --no-resume --name build-b --sft-steps 1600 --teachers tiny-internvl-teacher

bench: .venv/ready
	$(RUN) -m tools.bench

lint: .venv/ready
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

.venv/ready: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than 3.10; make PYTHON=python3.11 demo" >&2; exit 2; }
	@echo "installing into .venv (once, about a minute)"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -r requirements-dev.txt
	@touch .venv/ready

clean:
	rm -rf .venv runs __pycache__ */__pycache__ .pytest_cache .ruff_cache
