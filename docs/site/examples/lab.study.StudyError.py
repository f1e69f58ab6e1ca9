from gammabeta.lab.study import StudyError, study

try:
    study(["small_batches"])
except StudyError as error:
    print(error)
