import gammabeta as gb

# One case on one backend; without arguments, all cases on all backends, and certificates are kept.
verification = gb.verify(backends=["reference"], cases=["values/layer_norm/float64/mean=10000.0-std=0.01"])
print(verification.passed, verification.cases)
