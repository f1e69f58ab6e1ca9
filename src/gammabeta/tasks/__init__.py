"""The data, models and training that the study's trials run on."""
