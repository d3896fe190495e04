"""Input is data, never code: no call in the project unpickles, evaluates, or passes text to a shell."""

import ast

import pytest

from tests.repository import REPOSITORY

FILES = sorted(file for room in ("dags", "infra", "jobs", "lte_model") for file in (REPOSITORY / room).rglob("*.py"))

NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "joblib.load",
    "pd.read_pickle", "pandas.read_pickle", "cloudpickle.load", "cloudpickle.loads", "yaml.load", "yaml.unsafe_load",
    "mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "mlflow.sklearn.load_model", "runpy.run_path",
}  # fmt: skip


def unsafe(source: str) -> list[str]:
    """The calls that could execute data, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        wrong = (
            name in NEVER
            or given.get("shell") == "True"
            or given.get("allow_pickle") == "True"
            or (name == "torch.load" and given.get("weights_only") != "True")
        )
        if wrong:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_no_file_runs_what_it_reads(file):
    assert unsafe(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "pickle.loads(data)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "yaml.load(text, Loader)",
        "mlflow.pyfunc.load_model(uri)",
    ],
)
def test_the_rule_sees_what_it_forbids(line):
    assert unsafe(line) == [f"line 1: {line}"]
    assert unsafe("torch.load(file, map_location='cpu', weights_only=True); frame.list.eval(x); model.eval()") == []
