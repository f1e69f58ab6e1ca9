from gammabeta.monitoring.callbacks import transformers_callback

try:
    callback = transformers_callback(every=10)  # Trainer(callbacks=[callback])
except ImportError as error:
    print(error)
