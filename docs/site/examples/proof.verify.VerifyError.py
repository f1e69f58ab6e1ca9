import gammabeta as gb
from gammabeta.proof.verify import VerifyError

try:
    gb.verify(backends=["abacus"])
except VerifyError as error:
    print(error)
