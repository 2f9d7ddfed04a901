"""A job as parts, made by one process or by many: on this machine, or on a Ray cluster."""
