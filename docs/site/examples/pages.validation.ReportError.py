import tempfile
from pathlib import Path

from gammabeta.pages.report import read_results
from gammabeta.pages.validation import ReportError

folder = Path(tempfile.mkdtemp())
(folder / "results.json").write_text("{}")
try:
    read_results(folder)
except ReportError as error:
    print(str(error).replace(str(folder), "folder"))
