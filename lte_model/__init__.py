"""Long-term embeddings: windows, the semantic basis, the ranker, its training, evaluation and serving."""

import os

# torch reads these once, when it is loaded, so they are set here. Threads that spin while they wait take the cores that
# they wait for: on a busy machine, two cores trained eight times slower. Threads that sleep at once must be woken for
# every layer: a quiet machine trained at two thirds of its speed. So GNU's threads spin for some 150 µs; others sleep.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# By default MLflow sends telemetry, and shows a progress bar for each file that it copies.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
