# The commands of this project. `make` alone lists them. Works with GNU make 3.81 and any POSIX shell.
#
# Nothing needs to be installed first but python3, make and git: see .ci/bootstrap.py.

SHELL = /bin/sh
BIN = .venv/bin

# RabbitMQ versions that the tests run on.
ASYNCQ_TEST_VERSIONS ?= 3.10,4.3
# A folder of pictures for the demo, whether it leaves broker and workers up, and `memory` for no RabbitMQ at all.
PICTURES ?=
KEEP ?=
BROKER ?=
export ASYNCQ_TEST_VERSIONS PICTURES KEEP BROKER
# `make PYTHON=/path/to/python3 venv` makes the environment with that Python.
PYTHON ?=
export PYTHON

PYTEST = PYTHONPATH=.ci $(BIN)/pytest -p no_skips -o faulthandler_timeout=300
TEST_BROKERS = $(BIN)/python -B .ci/brokers.py $$(echo "$$ASYNCQ_TEST_VERSIONS" | tr ',' ' ')

TEST_SERVERS = $(BIN)/python -B tests/servers.py

.PHONY: help venv demo test conformance check prove bench broker-start broker-stop broker-status clean

help:
	@echo 'make demo           see real work done: pictures, a report, a mail, a web service, through a RabbitMQ of its own'
	@echo '                    PICTURES=folder takes your pictures; KEEP=1 leaves broker and workers up;'
	@echo '                    BROKER=memory needs no RabbitMQ: everything in one process'
	@echo 'make test           run the tests, on private RabbitMQ nodes (ASYNCQ_TEST_VERSIONS=$(ASYNCQ_TEST_VERSIONS)),'
	@echo '                    a private PostgreSQL, Redis and Prometheus, and a Chromium without a window'
	@echo 'make conformance    what every broker must do: in memory and on these RabbitMQ versions, side by side'
	@echo 'make check          ruff, mypy --strict, import-linter'
	@echo 'make prove          the proofs in full, and the benchmarks; prints their figures'
	@echo 'make bench          the benchmarks alone: asyncq beside raw aio-pika and Celery'
	@echo 'make broker-start   a private RabbitMQ for development; prints its URLs'
	@echo 'make broker-stop    stop it'
	@echo 'make broker-status  whether it runs, and its URLs'
	@echo 'make venv           the virtual environment .venv with everything in it (PYTHON=/path/to/python3)'
	@echo 'make clean          remove .venv and the caches of the tools'

venv:
	@sh .ci/venv workers demo dev

# The second line gets a broker where the user sees what is installed; the demo itself shows a live view.
demo:
	@sh .ci/venv workers demo
	@if [ -z "$$BROKER$$ASYNCQ_BROKER_URL" ]; then $(BIN)/python -B .ci/brokers.py any; fi
	@PYTHONPATH=workers $(BIN)/python -m demo

test: venv
	@$(TEST_BROKERS)
	@$(TEST_SERVERS)
	@sh .ci/tests -n 4 --dist loadgroup -m 'not prove'

conformance: venv
	@$(TEST_BROKERS)
	$(PYTEST) -n 2 --dist loadgroup -q -p asyncq.testing.conformance.report tests/conformance

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy .ci/*.py
	$(BIN)/lint-imports

# Some proofs also run on 4.0, where deliveries are counted in another way.
prove: venv
	@sh .ci/venv benchmarks
	@$(TEST_BROKERS) 4.0
	@$(TEST_SERVERS)
	$(PYTEST) -m prove -s -v
	$(PYTEST) --hypothesis-profile=prove --hypothesis-show-statistics -q tests/unit/test_properties_*.py
	$(PYTEST) --hypothesis-profile=prove -q tests/integration/test_random_workflows.py

bench: venv
	@sh .ci/venv benchmarks
	@$(TEST_SERVERS)
	$(BIN)/python benchmarks

broker-start:
	@rabbitmq/broker start

broker-stop:
	@rabbitmq/broker stop

broker-status:
	@rabbitmq/broker status

clean:
	@sh .ci/clean
