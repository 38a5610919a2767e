# Set-up, tests and installation on Debian 12 or newer. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
PREFIX ?= /opt/runta
SUDO := $(if $(filter 0,$(shell id -u)),,sudo )

# iproute2 and util-linux are for tests and host checks; python-prctl is compiled against libcap-dev and python3-dev.
PACKAGES := runc nftables busybox-static mmdebstrap musl-tools gcc libc6-dev libcap-dev python3-dev python3-venv \
	make zstd tar iproute2 util-linux debian-archive-keyring ca-certificates
OFFICIAL := build/official
RECIPES := $(wildcard rootfs/images/*.toml)
BENCH_PACKAGES := podman conmon
BENCH ?=

# Installs what is missing of the Debian packages it is given.
define install_missing
	@missing=""; \
	for package in $(1); do \
		[ "$$(dpkg-query -W -f='$${db:Status-Status}' $$package 2>/dev/null)" = installed ] || missing+=" $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "packages: installing$$missing"; \
		$(SUDO)apt-get -qq update; \
		$(SUDO)env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends$$missing >/dev/null; \
	else \
		echo "packages: all present"; \
	fi
endef

.PHONY: help setup packages init data provision images demo test conformance lint bench-setup bench install clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14

setup: packages $(VENV)/.ready data provision images ## Prepare this host: packages, .venv, guest init, CRIU, images
	@echo "setup: ready; try \`$(VENV)/bin/runta doctor\`"

packages:
	$(call install_missing,$(PACKAGES))

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "runta needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=…")'
	@echo "venv: making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	@echo "venv: installing runta and its tools"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(OFFICIAL)/.ready: tests/official/requirements.txt
	@echo "official: installing the hosted service's own package beside ours"
	@$(PYTHON) -m venv $(OFFICIAL)
	@$(OFFICIAL)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

init: ## Build the guest init
	@$(MAKE) --no-print-directory -s -C rootfs/init all asan

data: init
	@mkdir -p runta/data/images
	@cmp -s build/runta-init runta/data/runta-init || { install -m 755 build/runta-init runta/data/runta-init && echo "data: guest init copied"; }
	@for recipe in $(RECIPES); do \
		cmp -s $$recipe runta/data/images/$${recipe##*/} || { install -m 644 $$recipe runta/data/images/ && echo "data: $${recipe##*/} copied"; }; \
	done

provision: $(VENV)/.ready
	@$(SUDO)$(VENV)/bin/python -m runta.kernel.provision

images: $(VENV)/.ready data
	@$(SUDO)$(VENV)/bin/python -m runta.prepare

demo: setup ## Walk through checkpoint, restore and fork with real runtimes
	@$(SUDO)$(VENV)/bin/python -m runta.cli.demo

test: setup $(OFFICIAL)/.ready ## Run every test
	@$(VENV)/bin/pytest

conformance: setup $(OFFICIAL)/.ready ## Run the official package's own live tests
	@$(VENV)/bin/python -m tests.official.conformance

lint: packages $(VENV)/.ready ## Check style and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy --strict

bench-setup: packages ## Install podman, which the bench measures against
	$(call install_missing,$(BENCH_PACKAGES))

bench: setup ## Measure against raw runc and podman; BENCH="--quick" hands options on
	@$(SUDO)$(VENV)/bin/python -m tests.bench $(BENCH)

install: packages data ## Install into PREFIX (default /opt/runta) with a systemd unit
	@echo "install: $(PREFIX)"
	@$(PYTHON) -m venv $(PREFIX)
	@$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps .
	@$(PREFIX)/bin/pip install --quiet --disable-pip-version-check .
	@$(PREFIX)/bin/python -I -m runta.kernel.provision
	@$(PREFIX)/bin/python -I -m runta.prepare
	@ln -sfn $(PREFIX)/bin/runta /usr/local/bin/runta
	@sed 's|/opt/runta|$(PREFIX)|' systemd/runta.service > /etc/systemd/system/runta.service
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "install: done; start it with \`systemctl enable --now runta\`"

clean: ## Remove what was built here; the state directory and CRIU stay
	rm -rf build dist runta/data $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
