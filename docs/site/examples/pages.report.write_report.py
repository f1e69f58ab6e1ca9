import tempfile
from pathlib import Path

from gammabeta.lab.study import study
from gammabeta.pages.report import write_report

folder = Path(tempfile.mkdtemp())
results = study(["axes"], data="digits", quick=True, out=folder)
print(write_report(results, folder / "again.html").name)
