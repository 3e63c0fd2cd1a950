"""Studies: the tables and figures of the paper on the user's own data, and a comparison at equal cost.

Command: ``python -m a2aug_timm.study TABLE [TABLE…] -c RECIPE --data FOLDER -o FOLDER``.
"""
from .study_folder import Study
from .trial import Row, Setting, Trial

__all__ = ['Row', 'Setting', 'Study', 'Trial']
