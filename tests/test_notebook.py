"""The notebook runs as it is, on a CPU."""

import os
import re
from pathlib import Path

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "finetune.ipynb"
pytestmark = pytest.mark.filterwarnings("ignore")  # of jupyter_client and zmq


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A function that runs a notebook in a kernel of its own, in an empty directory."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name in ("MPLBACKEND", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)

    def run(notebook):
        resources = {"metadata": {"path": str(tmp_path)}}
        return nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()

    return run


def outputs(cell):
    """Everything that a cell shows, as text."""
    parts = [part.get("text", "") + "".join(map(str, part.get("data", {}).values())) for part in cell.outputs]
    return "".join(parts)


@pytest.mark.heavy
def test_the_notebook_runs(execute, tmp_path):
    done = execute(nbformat.read(NOTEBOOK, as_version=4))
    cells = {cell.source: cell for cell in done.cells if cell.cell_type == "code"}
    assert not [part for cell in cells.values() for part in cell.outputs if part.output_type == "error"]
    assert not any("Traceback" in outputs(cell) for cell in cells.values())

    def cell(text):
        return next(cell for source, cell in cells.items() if text in source)

    assert "pip" not in outputs(cell("find_spec"))  # it is installed here
    trained, resumed = cell("StopAt"), cell("run.resume()")
    assert "stopped" in outputs(trained) and re.search(r"iter 5[01]/100", outputs(trained))  # the bar
    assert "<img" in outputs(trained) and any("image/png" in part.get("data", {}) for part in resumed.outputs)
    assert not re.search(r"^iter \d+: loss", outputs(trained), re.M)  # the bar shows that
    assert "<table>" in outputs(cell("run.history"))
    assert "The " in outputs(cell("run.sample"))
    plots = cell("plt.show()")
    assert any("image/png" in part.get("data", {}) for part in plots.outputs)
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert (tmp_path / "out-notebook" / "report.html").is_file()


def test_an_error_is_a_line_without_a_traceback(execute):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("from finetune import train\ntrain(max_iter=3)")]
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        execute(notebook)
    (error,) = [part for part in notebook.cells[0].outputs if part.output_type == "error"]
    shown = "\n".join(error.traceback)
    assert "max_iter" in shown and "Traceback" not in shown and len(shown.splitlines()) <= 3


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not [cell for cell in code if cell.outputs or cell.execution_count]
    assert os.stat(NOTEBOOK).st_size < 20_000
