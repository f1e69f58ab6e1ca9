import gammabeta as gb

cases = ["values/layer_norm/float64/mean=10000.0-std=0.01", "values/layer_norm/float64/mean=1000000.0-std=1.0"]
verification = gb.verify(backends=["reference"], cases=cases)
print(verification.passed, verification.cases, verification.failures)
print([backend.name for backend in verification.backends])
