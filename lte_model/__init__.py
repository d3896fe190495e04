"""The domain of long-term embeddings: windows, the semantic basis, the model, its training and evaluation."""

import os

# Read once, when torch is loaded, so it has to stand before that. Threads that wait for each other by spinning take the
# cores that they wait for: on a machine with other work, two cores trained eight times slower. Those that sleep at once
# are woken for every layer: a quiet machine trained at two thirds. So GNU's spin for some 150 µs; others sleep.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# MLflow would tell its makers how it is used, and show a bar for each file that it copies.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
