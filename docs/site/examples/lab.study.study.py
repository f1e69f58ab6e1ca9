import tempfile

from gammabeta.lab.study import study

results = study(["axes"], data="digits", quick=True, out=tempfile.mkdtemp())
claim = results["claims"][0]
print(claim["verdict"], "|", claim["sentence"])
