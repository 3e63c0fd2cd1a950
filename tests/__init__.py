"""Tests, one folder per room of the package. Importing it prepares the environment that every test needs."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ['HF_HUB_OFFLINE'] = '1'  # huggingface_hub reads this when timm imports it
# Two processes run the tests, small tensors gain nothing from more threads, and sums of other threads differ in bits.
os.environ['OMP_NUM_THREADS'] = '1'

# pytest rewrites the assertions of test files and conftest.py only.
pytest.register_assert_rewrite('tests.commands', 'tests.joint_and_separate', 'tests.validate.reference')
