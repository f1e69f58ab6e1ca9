from gammabeta.monitoring.callbacks import lightning_callback

try:
    callback = lightning_callback(every=10, report="health.html")  # Trainer(callbacks=[callback])
except ImportError as error:
    print(error)
