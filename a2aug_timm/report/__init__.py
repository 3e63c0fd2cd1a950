"""Reports of training runs: their folders are read, drawn, and written as one HTML page.

Command: ``python -m a2aug_timm.report RUN [RUN…] -o FOLDER``.
"""
from .run_record import RunRecord, read_run

__all__ = ['RunRecord', 'read_run']
