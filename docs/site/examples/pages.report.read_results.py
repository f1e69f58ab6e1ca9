import tempfile

from gammabeta.lab.study import study
from gammabeta.pages.report import read_results

folder = tempfile.mkdtemp()
study(["axes"], data="digits", quick=True, out=folder)
print(read_results(folder)["claims"][0]["title"])
