"""Dask clients: this machine, a running scheduler, or batch jobs."""
