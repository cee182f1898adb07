#!/usr/bin/env bash
# Ray 2.60.0: ray.kill(handle) after ray.shutdown() first starts a new local Ray instance, then says that the handle is unknown.
#
# A handle of an actor is kept while the connection ends, as by a finalizer that runs when a program exits. Its kill
# goes through Ray's automatic ray.init(): a control store, a raylet and their agents are started on this machine, some
# ten seconds of two cores, by a program that has let go of its own cluster. ActorHandleNotFoundError comes after that,
# and the new instance stays until the program shuts it down or ends; who passes over errors at the end sees nothing.
#
# Expected before it was run: an error alone, that Ray is not initialised.
# Exits 0 while this is so, 1 when the behaviour changes. Installs into a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "ray==2.60.0"

cat > "$work/kill.py" <<'PYTHON'
import sys

import ray

print("ray", ray.__version__)
options = {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False}


@ray.remote
class Actor:
    def answer(self):
        return 42


ray.init(**options)
first = ray.get_runtime_context().get_node_id()
actor = Actor.remote()
assert ray.get(actor.answer.remote()) == 42
ray.shutdown()
assert not ray.is_initialized()
print("shut down; is_initialized:", ray.is_initialized())

error = None
try:
    ray.kill(actor)
except Exception as found:
    error = found
print("ray.kill:", "returned" if error is None else f"raised {type(error).__name__}")
print("is_initialized:", ray.is_initialized())
started = ray.is_initialized() and ray.get_runtime_context().get_node_id() != first
print("a new node was started:", started)
ray.shutdown()
same = started and type(error).__name__ == "ActorHandleNotFoundError"
print("as described" if same else "CHANGED: this is no longer so")
sys.exit(not same)
PYTHON

RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" "$work/kill.py"
